"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Optimiser


def _tail(progress: float, tail: float) -> float:
    return min(1.0, (1 - progress) / tail)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, tail: 1.0,
    "cosine": lambda progress, tail: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": _tail,
}


def learning_rate(spec: Optimiser, step: int, steps: int) -> float:
    """Learning rate after `step` of `steps` optimiser steps."""
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.lr * SCHEDULES[spec.schedule](progress, spec.tail)
