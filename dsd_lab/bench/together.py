"""Times training steps with several processes and with one, in alternating blocks of one run.

Blocks alternate, so that other load of the machine affects both.

    python -m dsd_lab.bench.together      a process other than the leader; reads its job from standard input
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsd_lab.bench.clock import Clock, spread
from dsd_lab.bench.random_images import random_images
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.peers import serve, started_here, trainer_among
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet

_WARM_UP = 3
"""Steps before the first block: buckets of gradients are known after the first one."""


class RandomShelf(DataShelf):
    """Gives random images, whatever a trial reads."""

    def get(self, trial: PlannedTrial, home: Home) -> DataSet:
        """Random images of the trial's size; the same in every process."""
        return random_images(trial.fields)


def over_processes(trial: PlannedTrial, processes: int) -> PlannedTrial:
    """The trial over so many processes on this machine, without events between its steps.

    Raises:
        BadInput: a batch has fewer images than there are processes.
    """
    fields = trial.fields
    part = fields.training.batch_size // fields.training.grad_accum_steps
    if part < processes:
        raise BadInput(f"--processes {processes}: a batch of {trial.name!r} has {part} images, at least one a process")
    steps = 10**9
    content = fields.model_dump()
    content["resources"] |= {"processes": processes, "gpus": float(processes) if fields.resources.gpus else 0.0}
    content["training"] |= {"steps": steps, "phases": []}  # the first stage is timed
    content["optimiser"] |= {"schedule": "constant"}
    content["probe"] |= {"every": steps}
    content["observation"] |= dict.fromkeys(("log_every", "images_every", "checkpoint_every"), steps)
    return replace(trial, fields=Trial.model_validate(content))


def compared(
    trial: PlannedTrial,
    data: DataSet,
    random: bool,
    device: torch.device,
    scratch: Path,
    steps: int,
    repeats: int,
) -> dict[str, Any]:
    """Images per second of the trial's processes together, and of one process alone.

    Args:
        trial: of `over_processes`.
        data: its images.
        random: whether they are random ones.
        device: of this process, which leads.
        scratch: folder in which the processes meet.
        steps: of a block.
        repeats: blocks of each kind.

    Returns:
        `images_per_second` and `images_per_second_of_one`; `efficiency`, the first over `processes` times the second;
        and its two factors: `small_batches`, the speed of one process on its share of a batch over that on a whole
        one, and `exchange`, what is left of it when processes exchange gradients, wait for each other and share
        the memory of one machine.
    """
    fields, clock = trial.fields, Clock(device)
    processes, images = fields.resources.team, fields.training.batch_size
    share = fields.training.model_copy(update={"batch_size": max(1, images // processes), "grad_accum_steps": 1})
    alone = Trainer(fields, trial.seed, data, device)
    apart = Trainer(fields.model_copy(update={"training": share}), trial.seed, data, device)
    for single in (alone, apart):
        _timed(single, clock, _WARM_UP)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder,
        started_here(home := Home(Path(folder)), trial, "dsd_lab.bench.together", {"random_images": random}) as peers,
    ):
        trainer = trainer_among(peers, trial, data, device, home.trial(trial.id).checkpoints)
        trainer.resume()  # as the others do: from nothing
        turns = _Turns(trainer, alone, apart, clock, steps, repeats)
        for _ in trainer.run(turns):
            pass
    rows = list(zip(turns.together, turns.alone, turns.apart, strict=True))
    return {
        "processes": processes,
        "images_per_second": spread([steps * images / t for t, _, _ in rows]),
        "images_per_second_of_one": spread([steps * images / a for _, a, _ in rows]),
        "efficiency": spread([a / (processes * t) for t, a, _ in rows]),
        "small_batches": spread([a * share.batch_size / (s * images) for _, a, s in rows]),
        "exchange": spread([s * images / (processes * share.batch_size * t) for t, _, s in rows]),
    }


class _Turns:
    """Asked by the trainer before every step whether to stop; times blocks of its steps, and of others between them."""

    def __init__(
        self, trainer: Trainer, alone: Trainer, apart: Trainer, clock: Clock, steps: int, repeats: int
    ) -> None:
        self._trainer, self._singles, self._clock = trainer, (alone, apart), clock
        self._steps, self._repeats = steps, repeats
        self._began = 0.0
        self.together: list[float] = []
        self.alone: list[float] = []
        self.apart: list[float] = []

    def __call__(self) -> bool:
        done = self._trainer.step - _WARM_UP
        if done < 0 or done % self._steps:
            return False
        if done:
            self.together.append(self._clock.now() - self._began)
            alone, apart = (_timed(single, self._clock, self._steps) for single in self._singles)
            self.alone.append(alone)
            self.apart.append(apart)
        self._began = self._clock.now()
        return len(self.together) == self._repeats


def _timed(trainer: Trainer, clock: Clock, steps: int) -> float:
    began = clock.now()
    for _ in range(steps):
        if (diverged := trainer.train_step()) is not None:
            raise BadInput(f"{diverged.reason}; a trial that diverges at once cannot be timed")
    return clock.now() - began


def _shelf(job: dict[str, Any]) -> DataShelf:
    return RandomShelf() if job["random_images"] else DataShelf()


if __name__ == "__main__":
    sys.exit(serve(_shelf))
