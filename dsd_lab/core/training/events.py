"""What a trainer tells: typed events, in the order in which they happen.

An event's content depends on (trial, seed, step) alone, so that a resumed trial tells the same
story; clock times and speeds are in `seconds`, which is excepted from that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Event:
    """Something that happened after `step` optimiser steps."""

    step: int


@dataclass(frozen=True)
class Logged(Event):
    """Means of training metrics since the last record."""

    metrics: dict[str, float]
    seconds: float
    """Wall time of the steps in this record, probes and checkpoints left out."""


@dataclass(frozen=True)
class Probed(Event):
    """Latent metrics and covariance spectra on the probe set, weights as trained."""

    metrics: dict[str, float]
    spectra: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Drew(Event):
    """Grids of images [N, C, H, W] uint8 by name."""

    images: dict[str, Tensor] = field(compare=False)


@dataclass(frozen=True)
class Checkpointed(Event):
    """The state after `step` is complete on disk; a resumed trial goes on after this event."""

    seconds: float


@dataclass(frozen=True)
class Diverged(Event):
    """A loss or a gradient was not finite, so the optimiser did not take this step. A result."""

    reason: str


@dataclass(frozen=True)
class Finished(Event):
    """All steps are done and the final weights are in the last checkpoint."""

    images_seen: int
