"""A clock that waits for queued GPU work, and statistics of repeated measurements."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Clock:
    """Seconds on a device; a reading waits for queued work."""

    device: torch.device

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values)}
