"""Times one trial's training on this machine: whole steps beside a bare loop's, their parts, and what happens between them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dsd_lab.bench.bare_loop import BareLoop, EagerLoop
from dsd_lab.bench.clock import Clock, Taken, mean, middle, spread
from dsd_lab.bench.evaluation import evaluation_ratios
from dsd_lab.bench.events import event_seconds
from dsd_lab.bench.machine import Ceiling, tensor_bytes
from dsd_lab.bench.parts import PARTS, Stopwatch, timed_parts
from dsd_lab.core.data import DataSet
from dsd_lab.core.training.cuda_graphs import WARM_UP
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.runs.meter import forget_peak, peak_memory
from dsd_lab.specs.trial import Stage, Trial

_BLOCK_SECONDS = 0.5
"""Seconds that a block of steps is to take, where the number of steps is not given."""
_MOST_STEPS = 100
_TURNS = 8
"""Times that a block changes between the trainer and the bare loop, so that both see the same machine."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    repeats: int
    steps: int | None = None
    """Steps of a block; None: as many as take about half a second, 2 to 100."""


class _Block:
    """A number of steps in every stage of a trial, by the trainer and by the bare loop."""

    def __init__(self, trainer: Trainer, clock: Clock) -> None:
        self.trainer, self.clock = trainer, clock
        stages, steps = trainer.stages, trainer.trial.training.steps
        ends = [*(stage.start for stage in stages[1:]), steps]
        self.shares = {stage.start: (end - stage.start) / steps for stage, end in zip(stages, ends, strict=True)}
        self._ends = dict(zip(self.shares, ends, strict=True))
        self._at = {stage.start: stage.start for stage in stages}

    def enter(self, stage: Stage) -> None:
        """Go on in a stage where the last block of it ended."""
        self.trainer.step = self._at[stage.start]
        if self.trainer.stage is not stage:
            for _ in self.trainer.run(lambda: True):  # enters the stage of its step, and ends before it
                pass

    def settle(self, stage: Stage) -> None:
        """Steps that are not timed, up to the first that is replayed, where steps are."""
        if self.trainer.replay is not None:
            self.ours(stage, WARM_UP + 1)

    def ours(self, stage: Stage, count: int) -> Taken:
        """Time of so many of the trainer's steps; they begin anew at the stage's end."""
        began = self.clock.both()
        for _ in range(count):
            if self.trainer.step >= self._ends[stage.start]:
                self.trainer.step = stage.start
            diverged = self.trainer.train_step()
            if diverged is not None:
                raise BadInput(f"{diverged.reason}; a trial that diverges at once cannot be timed")
        taken = self.clock.both() - began
        self._at[stage.start] = min(self.trainer.step, self._ends[stage.start] - 1)
        return taken

    def bare(self, loop: BareLoop, stage: Stage, count: int) -> Taken:
        """Time of so many of the bare loop's steps."""
        began = self.clock.both()
        for _ in range(count):
            if loop.count >= self._ends[stage.start]:
                loop.count = stage.start
            loop.step(*loop.batch())
        return self.clock.both() - began


def measure(
    trial: Trial,
    seed: int,
    data: DataSet,
    device: torch.device,
    scratch: Path,
    settings: Settings,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Figures of one trial; each with a spread holds the median, least and greatest of the repeats.

    With phases, what concerns a step is the mean over all steps of the trial. The ratio to the bare
    loop is that of the median turns.

    Args:
        trial: what is trained.
        seed: of its weights and batches.
        data: its images.
        device: where it trains.
        scratch: folder for files that are written and removed, on the disk where trials lie.
        settings: how much is measured.
        told: called with the number of repeats that are done.

    Raises:
        BadInput: the trial diverges at once.
    """
    torch.set_num_threads(trial.resources.threads)
    clock, repeats = Clock(device), settings.repeats
    forget_peak(device)
    began = clock.now()
    trainer = Trainer(trial, seed, data, device)
    built = clock.now() - began
    block = _Block(trainer, clock)
    warm = _warm_up(block, trainer.stages)
    memory = peak_memory(device)
    ceiling = Ceiling(device, trial.training.precision)  # after the peak, which its matrices would raise
    steps = settings.steps or max(2, min(_MOST_STEPS, round(_BLOCK_SECONDS / warm)))
    turns = min(steps, _TURNS)
    steps = turns * (steps // turns)
    loop, eager = BareLoop(trainer), EagerLoop(trainer)
    for each in (loop, eager):
        each.step(*each.batch())

    ceilings, step_seconds, bare_seconds, ratios, gains = [ceiling.measure()], [], [], [], []
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for repeat in range(repeats):
        ours = bare = unhurried = 0.0
        middles = [Taken(), Taken()]
        its_parts = dict.fromkeys(PARTS, 0.0)
        for stage in trainer.stages:
            share = block.shares[stage.start]
            block.enter(stage)
            block.settle(stage)
            loop.enter(stage)
            eager.enter(stage)
            both = _in_turns(block, loop, stage, turns, steps // turns, repeat)
            ours, bare = ours + share * mean(both[0]).wall, bare + share * mean(both[1]).wall
            middles = [before + middle(its) * share for before, its in zip(middles, both, strict=True)]
            unhurried += share * block.bare(eager, stage, steps).wall / steps
            watch = Stopwatch(clock)
            with timed_parts(trainer, watch):
                block.ours(stage, steps)
            for name, seconds in watch.seconds.items():
                its_parts[name] += share * seconds / steps
        step_seconds.append(ours)
        bare_seconds.append(bare)
        gains.append(unhurried / ours)
        ratios.append((middles[0].wall / middles[1].wall, middles[0].cpu / middles[1].cpu))
        for name in PARTS:
            parts[name].append(its_parts[name])
        ceilings.append(ceiling.measure())
        told(repeat + 1)
    longest = max(trainer.stages, key=lambda stage: block.shares[stage.start])
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder:
        events = event_seconds(trainer, clock, Path(folder), longest.start, repeats)
    evaluation = evaluation_ratios(trainer, clock, repeats) if trial.has_denoiser else {}
    block.enter(longest)
    memory["tensors"] = tensor_bytes(trainer)

    images, shape = trial.training.batch_size, Shape(**count_shape(trial, data.channels, data.classes))
    per_image = count_bytes(trial, data.channels, data.classes)
    memory["planned"] = shape.memory(trial.training, per_image)
    held = memory["bytes" if device.type == "cuda" else "tensors"]  # a process on the CPU holds libraries too
    memory["off_plan"] = abs(held / memory["planned"] - 1)
    flops = shape.flops_per_image * images
    around = [(before + after) / 2 for before, after in pairwise(ceilings)]
    return {
        "on": device.type,
        "precision": trial.training.precision,
        "batch_size": images,
        "threads": trial.resources.threads,
        "params": shape.params["total"],
        "steps_timed": steps * repeats * len(trainer.stages),
        "step_seconds": spread(step_seconds),
        "images_per_second": spread([images / s for s in step_seconds]),
        "parts": {name: spread(values) for name, values in parts.items()},
        "flops_per_image": shape.flops_per_image,
        "flops_by_role": shape.role_flops,
        "ceiling_flops_per_second": spread(ceilings),
        "utilisation": spread([flops / s / c for s, c in zip(step_seconds, around, strict=True)]),
        "loop": {
            "ratio": spread([wall for wall, _ in ratios]),
            "cpu_ratio": spread([cpu for _, cpu in ratios]),
            "bare_step_seconds": spread(bare_seconds),
            "losses": "written out" if loop.by_hand else "shared",
        },
        "over_eager": spread(gains),
        "evaluation": {name: spread(values) for name, values in evaluation.items()},
        "memory": memory,
        "build_seconds": built,
        "events": {
            name: {what: spread(values) for what, values in kinds.items() if values} for name, kinds in events.items()
        },
    }


def _warm_up(block: _Block, stages: list[Stage]) -> float:
    """Three steps in every stage; returns the seconds of the fastest."""
    fastest = float("inf")
    for stage in stages:
        block.enter(stage)
        block.settle(stage)
        fastest = min(fastest, *(block.ours(stage, 1).wall for _ in range(3)))
    return fastest


def _in_turns(
    block: _Block, loop: BareLoop, stage: Stage, turns: int, count: int, repeat: int
) -> tuple[list[Taken], list[Taken]]:
    """Time of a step of both in each turn of `count` steps; who begins changes from turn to turn."""
    ours, bare = [], []
    for turn in range(turns):
        if (turn + repeat) % 2:
            bare.append(block.bare(loop, stage, count) * (1 / count))
            ours.append(block.ours(stage, count) * (1 / count))
        else:
            ours.append(block.ours(stage, count) * (1 / count))
            bare.append(block.bare(loop, stage, count) * (1 / count))
    return ours, bare
