"""Where the time of a training step goes, told by timers that are put around the trainer's calls from outside.

The trainer has no timers: for as long as `timed_parts` lasts, the functions that it calls are replaced
by ones that tell a stopwatch. Every moment counts for the innermost part alone, so that the parts add
up to the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dsd_lab.bench.clock import Clock, spread
from dsd_lab.bench.events import replaced
from dsd_lab.bench.measure import Block
from dsd_lab.core.training import trainer as training
from dsd_lab.core.training.trainer import Trainer

PARTS = (
    "data",
    "encode",
    "denoise",
    "decode",
    "target",
    "objective",
    "backward",
    "optimiser",
    "average",
    "rest",
)
"""`data`: images and random numbers; `target`: the EMA encoder's pass; `objective`: losses and auxiliary heads beside
the passes; `optimiser`: clipping and step; `average`: EMA of weights; `rest`: schedule, check for finite values, records."""


class Stopwatch:
    """Adds up the time of nested calls, each moment for the innermost part alone."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, told of."""

        def told(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(part)
            try:
                return call(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return told

    def _turn(self) -> None:
        now = self._clock.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def timed_parts(trainer: Trainer, watch: Stopwatch) -> Iterator[None]:
    """Tell the stopwatch of every part of the trainer's steps until the block ends."""
    network, target = trainer.network, trainer.target_encoder
    calls: list[tuple[Any, str, str]] = [
        (trainer, "train_step", "rest"),
        (trainer, "draw", "data"),
        (trainer, "gradients", "backward"),  # what is left of it without the losses
        (training, "losses", "objective"),
        (network, "encode_raw", "encode"),
        (network.normaliser, "forward", "encode"),
        (network, "denoise", "denoise"),
        (network, "decode_input", "decode"),
        (training, "clip_gradients", "optimiser"),
        (trainer.optimiser, "step", "optimiser"),
        *((averaging, "follow", "average") for averaging in trainer.averaging.values()),
    ]
    if trainer.target_averaging is not None:
        calls.append((trainer.target_averaging, "follow", "average"))
    calls += [] if target is None else [(target, "encode", "target"), (target, "encode_raw", "target")]
    with contextlib.ExitStack() as stack:
        for owner, name, part in calls:
            stack.enter_context(replaced(owner, name, partial(watch.timed, part)))
        yield


def part_seconds(trainer: Trainer, block: Block, clock: Clock, repeats: int, steps: int) -> dict[str, dict[str, float]]:
    """Seconds per step of each of `PARTS`; with phases, the mean over all steps of the trial."""
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(repeats):
        own = dict.fromkeys(PARTS, 0.0)
        for stage in trainer.stages:
            watch = Stopwatch(clock)
            block.enter(stage)
            with timed_parts(trainer, watch):
                block.steps(stage, steps)
            for name, seconds in watch.seconds.items():
                own[name] += block.shares[stage.start] * seconds / steps
        for name in PARTS:
            found[name].append(own[name])
    return {name: spread(values) for name, values in found.items()}
