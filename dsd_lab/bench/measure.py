"""Time a trial's training on this machine: its steps and what happens between them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dsd_lab.bench.clock import Clock, spread
from dsd_lab.bench.events import event_seconds
from dsd_lab.bench.machine import Ceiling, held_memory, tensor_bytes
from dsd_lab.bench.random_images import random_images
from dsd_lab.bench.subjects import Subject
from dsd_lab.bench.summary import event_medians, shares
from dsd_lab.bench.together import compared, over_processes
from dsd_lab.core.data import DataSet
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.measurement_records import Events, Figure
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.planning.measured import cpu_name, remember_figure, whole_seconds
from dsd_lab.provenance import device_name
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.trial import Stage, Trial
from dsd_lab.training_code import training_code

_BLOCK_SECONDS = 0.5
"""Target duration of a block of steps if the number of steps is not given."""
_MAX_STEPS = 100


@dataclass(frozen=True)
class Settings:
    """Amount of measurement."""

    repeats: int
    steps: int | None = None
    """Steps per block; None: as many as take about half a second, 2 to 100."""
    processes: int = 1
    """Processes of a trial, whose joint speed is compared with that of one; 1: no comparison."""


class Block:
    """Runs blocks of steps in each stage of a trial.

    Attributes:
        shares: share of the trial's steps, by first step of a stage.
        ends: end of a stage (exclusive), by its first step.
    """

    def __init__(self, trainer: Trainer, clock: Clock) -> None:
        self.trainer, self.clock = trainer, clock
        stages, steps = trainer.stages, trainer.trial.training.steps
        ends = [*(stage.start for stage in stages[1:]), steps]
        self.ends = {stage.start: end for stage, end in zip(stages, ends, strict=True)}
        self.shares = {start: (end - start) / steps for start, end in self.ends.items()}
        self._at = {start: start for start in self.ends}

    def enter(self, stage: Stage) -> None:
        """Continue a stage where its last block ended."""
        self.trainer.step = self._at[stage.start]
        if self.trainer.stage is not stage:
            for _ in self.trainer.run(lambda: True):  # enters the stage, stops before its first step
                pass

    def steps(self, stage: Stage, count: int) -> float:
        """Seconds of `count` steps in total. After the end of the stage they restart at its beginning.

        Raises:
            BadInput: the trial diverges.
        """
        began = self.clock.now()
        for _ in range(count):
            if self.trainer.step >= self.ends[stage.start]:
                self.trainer.step = stage.start
            diverged = self.trainer.train_step()
            if diverged is not None:
                raise BadInput(f"{diverged.reason}; a trial that diverges at once cannot be timed")
        taken = self.clock.now() - began
        self._at[stage.start] = min(self.trainer.step, self.ends[stage.start] - 1)
        return taken


def measured(
    subjects: Sequence[Subject],
    home: Home,
    scratch: Path,
    settings: Settings,
    on_repeat: Callable[[Subject, int], None] = lambda subject, done: None,
) -> Iterator[tuple[Subject, DataSet, dict[str, Any]]]:
    """Measure subjects; yields each with its images and figures, which are stored for `dsd-lab plan`.

    Args:
        subjects: what to measure, in order.
        home: stores facts of data and figures.
        scratch: folder for temporary files on the disk of the trials.
        settings: amount of measurement.
        on_repeat: called with the subject and its number of finished repeats.

    Raises:
        BadInput: a trial diverges at once.
        NoResources: a trial needs a GPU that is missing.
    """
    shelf = DataShelf()
    for subject in subjects:
        trial, fields = subject.trial, subject.trial.fields
        device = pick_device(fields.resources.gpus)
        data = random_images(fields) if subject.random_images else shelf.get(trial, home)
        team = over_processes(trial, settings.processes) if settings.processes > 1 else None
        figures = measure(fields, trial.seed, data, device, scratch, settings, partial(on_repeat, subject))
        name = cpu_name() if device.type == "cpu" else device_name(device)
        step, events = figures["step_seconds"]["median"], Events(**event_medians(figures))
        figure = Figure(step=step, events=events, code=training_code(), measured_at=time.time())
        if team is not None:
            steps = figures["steps_timed"] // (settings.repeats * len(fields.stages()))
            found = compared(team, data, subject.random_images, device, scratch, steps, settings.repeats)
            figures["together"] = found
            figure = figure.changed(efficiency={str(settings.processes): found["efficiency"]["median"]})
        remember_figure(home, fields, name, figure)
        yield (
            subject,
            data,
            {
                "spec": subject.spec,
                "name": subject.name,
                "variant": trial.variant,
                "point": trial.point,
                "size": fields.network.size,
                "images": "random" if subject.random_images else fields.data.source,
                "device": name,
                **figures,
                "shares": shares(fields, figures),
                "trial_seconds": whole_seconds(fields, step, events),
            },
        )


def measure(
    trial: Trial,
    seed: int,
    data: DataSet,
    device: torch.device,
    scratch: Path,
    settings: Settings,
    on_repeat: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Figures of a trial. A figure with a spread has the median, minimum and maximum of the repeats.

    With phases, a figure per step is the mean over all steps of the trial.

    Args:
        trial: what is trained.
        seed: of its weights and batches.
        data: its images.
        device: where it trains.
        scratch: folder for temporary files on the disk of the trials.
        settings: amount of measurement.
        on_repeat: called with the number of finished repeats.

    Raises:
        BadInput: the trial diverges at once.
    """
    torch.set_num_threads(trial.resources.threads)
    clock, repeats = Clock(device), settings.repeats
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = clock.now()
    trainer = Trainer(trial, seed, data, device)
    built = clock.now() - began
    block = Block(trainer, clock)
    warm = _warm_up(block, trainer.stages)
    memory = held_memory(device)
    ceiling = Ceiling(device, trial.training.precision)  # before the trial's memory is measured
    steps = settings.steps or max(2, min(_MAX_STEPS, round(_BLOCK_SECONDS / warm)))

    ceilings, step_seconds = [ceiling.measure()], []
    for repeat in range(repeats):
        seconds = 0.0
        for stage in trainer.stages:
            block.enter(stage)
            seconds += block.shares[stage.start] * block.steps(stage, steps) / steps
        step_seconds.append(seconds)
        ceilings.append(ceiling.measure())
        on_repeat(repeat + 1)
    longest = max(trainer.stages, key=lambda stage: block.shares[stage.start])
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder:
        events = event_seconds(trainer, clock, Path(folder), longest.start, repeats)
    block.enter(longest)
    memory["tensors"] = tensor_bytes(trainer)

    images, shape = trial.training.batch_size, Shape(**count_shape(trial, data.channels, data.classes))
    per_image = count_bytes(trial, data.channels, data.classes)
    memory["planned"] = shape.memory(trial.training, per_image)
    held = memory["bytes" if device.type == "cuda" else "tensors"]  # a CPU process holds libraries too
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
        "flops_per_image": shape.flops_per_image,
        "flops_by_role": shape.role_flops,
        "ceiling_flops_per_second": spread(ceilings),
        "utilisation": spread([flops / s / c for s, c in zip(step_seconds, around, strict=True)]),
        "memory": memory,
        "build_seconds": built,
        "events": {
            name: {what: spread(values) for what, values in kinds.items() if values} for name, kinds in events.items()
        },
    }


def _warm_up(block: Block, stages: list[Stage]) -> float:
    """Run three steps in every stage. Returns the seconds of the fastest step."""
    fastest = float("inf")
    for stage in stages:
        block.enter(stage)
        fastest = min(fastest, *(block.steps(stage, 1) for _ in range(3)))
    return fastest
