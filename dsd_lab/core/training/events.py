"""The typed events that a trainer yields, in order.

An event depends only on (trial, seed, step), so a resumed trial yields the same events. The exception is `seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Event:
    """An event after `step` optimiser steps."""

    step: int


@dataclass(frozen=True)
class Logged(Event):
    """Means of training metrics since the last record."""

    metrics: dict[str, float]
    seconds: float
    """Wall time of the steps in this record, without probes and checkpoints."""


@dataclass(frozen=True)
class Probed(Event):
    """Latent metrics and covariance spectra on the probe set, with the trained weights (not the EMA)."""

    metrics: dict[str, float]
    spectra: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Drew(Event):
    """Grids of images [N, C, H, W] uint8 by name."""

    images: dict[str, Tensor] = field(compare=False)


@dataclass(frozen=True)
class Checkpointed(Event):
    """The checkpoint of `step` is complete on disk; a resumed trial continues after this event."""

    seconds: float


@dataclass(frozen=True)
class Diverged(Event):
    """A loss or a gradient was not finite, and the optimiser step was not taken. Divergence is a result."""

    reason: str


@dataclass(frozen=True)
class Finished(Event):
    """All steps are done; the last checkpoint has the final weights."""

    images_seen: int
