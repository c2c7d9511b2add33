"""Peak rate of matrix products, and the memory of a process."""

from __future__ import annotations

import itertools
import os
from typing import Any

import psutil
import torch

from dsd_lab.bench.clock import Clock
from dsd_lab.core.training.trainer import Trainer

_SIDES = {"cpu": 768, "cuda": 8192}
"""Rows of the square matrices: large enough for the peak rate, small enough for `_SECONDS`."""
_SECONDS = 0.1
"""Minimum duration of a measurement in seconds."""


class Ceiling:
    """Measures FLOP/s of square matrix products.

    Args:
        device: where.
        precision: `fp32` or `bf16`, as in a trial.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        side = _SIDES.get(device.type, _SIDES["cpu"])
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self._a, self._b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        self._clock, self._flops = Clock(device), 2.0 * side**3
        self.measure()  # warm-up: loads the kernels

    @torch.no_grad()
    def measure(self) -> float:
        """Current FLOP/s with the threads that are set."""
        began, count, batch = self._clock.now(), 0, 1
        while True:
            for _ in range(batch):
                self._a @ self._b
            count += batch
            took = self._clock.now() - began
            if took >= _SECONDS:
                return count * self._flops / took
            batch *= 2  # so that a GPU is synchronised rarely


def held_memory(device: torch.device) -> dict[str, Any]:
    """Memory in bytes, and what was measured: the process (CPU), or the peak of GPU tensors."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "GPU tensors"}
    return {"bytes": psutil.Process().memory_info().rss, "of": "process"}


def tensor_bytes(trainer: Trainer) -> int:
    """Peak bytes of tensors in a trainer's step: weights, moments, copies and temporaries.

    Measured by torch's profiler between operations, like a GPU's allocator would. A CPU process also holds
    libraries and freed memory.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler's start and stop messages
    weights = {p.data_ptr(): p.nbytes for part in trainer.saved_modules.values() for p in part.parameters()}
    moments = sum(v.nbytes for p in trainer.trained.parameters() for v in trainer.optimiser.state_of(p).values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train_step()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    most = max(itertools.accumulate(event.self_cpu_memory_usage for event in events))
    return int(sum(weights.values()) + moments + most)
