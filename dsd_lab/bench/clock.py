"""Reading the clock so that a GPU's work counts where it was asked for, and what several readings say together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Taken:
    """Time that something took, in seconds: on the clock on the wall, and of this process on all CPUs together.

    Other work on the machine makes the first longer and leaves the second nearly as it is.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Taken) -> Taken:
        return Taken(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, share: float) -> Taken:
        return Taken(self.wall * share, self.cpu * share)


def mean(values: Sequence[Taken]) -> Taken:
    """The mean by either clock."""
    return sum(values, Taken()) * (1 / len(values))


def middle(values: Sequence[Taken]) -> Taken:
    """The median by either clock, which a moment of other work does not move."""
    return Taken(median(v.wall for v in values), median(v.cpu for v in values))


@dataclass(frozen=True)
class Clock:
    """Seconds on a device: work that was queued before a reading is finished at it."""

    device: torch.device

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def both(self) -> Taken:
        """Both clocks, each since an arbitrary moment."""
        return Taken(self.now(), time.process_time())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the repeats' values, by name."""
    return {"median": median(values), "min": min(values), "max": max(values)}
