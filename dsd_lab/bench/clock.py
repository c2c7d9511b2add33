"""Reading the clock so that a GPU's work counts where it was asked for, and what several readings say together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Clock:
    """Seconds on a device: work that was queued before a reading is finished at it."""

    device: torch.device

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the repeats' values, by name."""
    return {"median": median(values), "min": min(values), "max": max(values)}
