"""What a machine can do: matrix products per second, and the memory that a process takes."""

from __future__ import annotations

import itertools
import os
from typing import Any

import psutil
import torch

from dsd_lab.bench.clock import Clock
from dsd_lab.core.training.trainer import Trainer

_SIDES = {"cpu": 768, "cuda": 8192}
"""Rows of the square matrices: large enough for the full rate, small enough for the time given."""
_SECONDS = 0.1
"""Seconds that one measurement takes at least."""


class Ceiling:
    """Measures FLOP/s of square matrix products.

    Args:
        device: where.
        precision: `fp32` or `bf16`, as a trial has it.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        side = _SIDES.get(device.type, _SIDES["cpu"])
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self._a, self._b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        self._clock, self._flops = Clock(device), 2.0 * side**3
        self.measure()  # the first products load the library's kernels

    @torch.no_grad()
    def measure(self) -> float:
        """FLOP/s, now, with the threads that are set."""
        began, count, batch = self._clock.now(), 0, 1
        while True:
            for _ in range(batch):
                self._a @ self._b
            count += batch
            took = self._clock.now() - began
            if took >= _SECONDS:
                return count * self._flops / took
            batch *= 2  # few waits for a GPU


def held_memory(device: torch.device) -> dict[str, Any]:
    """Bytes and what they are: all that the process holds now (CPU), or the most that tensors held on the GPU."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "GPU tensors"}
    return {"bytes": psutil.Process().memory_info().rss, "of": "process"}


def tensor_bytes(trainer: Trainer) -> int:
    """Bytes of tensors at most in one of the trainer's steps: weights, moments and copies, and what a step makes beside them.

    By torch's profiler, between operations. This is what a GPU's allocator would tell; a process on the CPU holds
    libraries and freed memory besides.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes of its own start and stop
    weights = {p.data_ptr(): p.nbytes for part in trainer.saved_modules.values() for p in part.parameters()}
    moments = sum(v.nbytes for p in trainer.trained.parameters() for v in trainer.optimiser.state_of(p).values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train_step()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    most = max(itertools.accumulate(event.self_cpu_memory_usage for event in events))
    return int(sum(weights.values()) + moments + most)
