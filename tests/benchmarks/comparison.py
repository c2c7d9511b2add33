"""The trainer's steps beside a bare loop's, turn by turn in one process, so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.bare_loop import BareLoop, EagerLoop
from benchmarks.parts import part_seconds
from dsd_lab.bench.clock import Clock, spread
from dsd_lab.bench.measure import Block
from dsd_lab.core.data import DataSet
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.trial import Stage, Trial

_TURNS = 8
"""Times that a block of steps changes between the trainer and the bare loop."""


@dataclass(frozen=True)
class Taken:
    """Seconds of wall time, and of this process on all CPUs. Other work makes the first longer, the second hardly."""

    wall: float = 0.0
    cpu: float = 0.0


def compare(trial: Trial, seed: int, data: DataSet, device: torch.device, repeats: int, steps: int) -> dict[str, Any]:
    """`loop`: a step of the trainer over one of the bare loop, by the median turn; `over_eager`: plain float32 over ours; `parts` of a step.

    With phases, what concerns a step is the mean over all steps of the trial.

    Args:
        trial: what is trained.
        seed: of its weights and batches.
        data: its images.
        device: where it trains.
        repeats: values of each figure.
        steps: of a repeat.
    """
    torch.set_num_threads(trial.resources.threads)
    trainer = Trainer(trial, seed, data, device)
    block, clock = Block(trainer, Clock(device)), Clock(device)
    turns = min(steps, _TURNS)
    loop, eager = BareLoop(trainer), EagerLoop(trainer)
    for stage in trainer.stages:
        block.enter(stage)
        block.steps(stage, 2)
    for each in (loop, eager):
        each.step(*each.batch())
    found: dict[str, list[float]] = {"ratio": [], "cpu_ratio": [], "bare_step_seconds": [], "over_eager": []}
    for repeat in range(repeats):
        ours, bare, ours_cpu, bare_cpu, unhurried = 0.0, 0.0, 0.0, 0.0, 0.0
        for stage in trainer.stages:
            share = block.shares[stage.start]
            block.enter(stage)
            for each in (loop, eager):
                each.enter(stage)
            both = _in_turns(block, loop, stage, clock, turns, max(1, steps // turns), repeat)
            ours, bare = (a + share * _middle(b, "wall") for a, b in zip((ours, bare), both, strict=True))
            ours_cpu, bare_cpu = (
                a + share * _middle(b, "cpu") for a, b in zip((ours_cpu, bare_cpu), both, strict=True)
            )
            unhurried += share * _bare(block, eager, stage, clock, steps).wall
        found["ratio"].append(ours / bare)
        found["cpu_ratio"].append(ours_cpu / bare_cpu)
        found["bare_step_seconds"].append(bare)
        found["over_eager"].append(unhurried / ours)
    spreads = {name: spread(values) for name, values in found.items()}
    losses = "written out" if loop.by_hand else "shared"
    return {
        "over_eager": spreads.pop("over_eager"),
        "loop": {**spreads, "losses": losses},
        "parts": part_seconds(trainer, block, clock, repeats, steps),
    }


def _in_turns(
    block: Block, loop: BareLoop, stage: Stage, clock: Clock, turns: int, count: int, repeat: int
) -> tuple[list[Taken], list[Taken]]:
    """Time of a step of the trainer, and of the loop, in each turn of `count` steps; who begins changes from turn to turn."""
    ours, bare = [], []
    for turn in range(turns):
        for whose in ("bare", "ours") if (turn + repeat) % 2 else ("ours", "bare"):
            if whose == "bare":
                bare.append(_bare(block, loop, stage, clock, count))
            else:
                began = _read(clock)
                block.steps(stage, count)
                ours.append(_since(began, clock, count))
    return ours, bare


def _bare(block: Block, loop: BareLoop, stage: Stage, clock: Clock, count: int) -> Taken:
    """Time of a step of the bare loop, in a block of `count`; they begin anew at the stage's end."""
    began = _read(clock)
    for _ in range(count):
        if loop.count >= block.ends[stage.start]:
            loop.count = stage.start
        loop.step(*loop.batch())
    return _since(began, clock, count)


def _read(clock: Clock) -> Taken:
    return Taken(clock.now(), time.process_time())


def _since(began: Taken, clock: Clock, count: int) -> Taken:
    now = _read(clock)
    return Taken((now.wall - began.wall) / count, (now.cpu - began.cpu) / count)


def _middle(values: Sequence[Taken], which: str) -> float:
    return float(median(getattr(value, which) for value in values))
