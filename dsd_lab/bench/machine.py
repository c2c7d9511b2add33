"""What a machine can do: matrix products per second, and the memory that a process takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from pathlib import Path
from typing import Any

import torch

from dsd_lab.bench.clock import Clock
from dsd_lab.core.training.trainer import Trainer

_SIDES = {"cpu": 768, "cuda": 8192}
"""Rows of the square matrices: large enough for the full rate, small enough for the time given."""


_SECONDS = 0.1


class Ceiling:
    """Measures FLOP/s of square matrix products.

    Args:
        device: where.
        precision: `fp32` or `bf16`, as a trial has it.
        seconds: that one measurement takes at least.
    """

    def __init__(self, device: torch.device, precision: str, seconds: float = _SECONDS) -> None:
        side = _SIDES.get(device.type, _SIDES["cpu"])
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self._a, self._b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        self._clock, self._seconds, self._flops = Clock(device), seconds, 2.0 * side**3
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
            if took >= self._seconds:
                return count * self._flops / took
            batch *= 2  # few waits for a GPU


_PROCESS = Path("/proc/self")


def forget_peak(device: torch.device) -> None:
    """Measure the peak from here on; where the kernel cannot forget, a process keeps that of its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Bytes and what they are: all that the process holds (CPU), or tensors on the GPU."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "GPU tensors"}
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (_PROCESS / "status").read_text().splitlines()
        told = next(line for line in lines if line.startswith("VmHWM:"))
        return {"bytes": int(told.split()[1]) * 1024, "of": "process"}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of": "process"}


def tensor_bytes(trainer: Trainer) -> int:
    """Bytes of tensors at most in one of the trainer's steps: weights, moments and copies, and what a step makes beside them.

    By torch's profiler, between operations. This is what a GPU's allocator would tell; a process on the CPU holds
    libraries and freed memory besides.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes of its own start and stop
    weights = {p.data_ptr(): p.nbytes for part in trainer.kept.values() for p in part.parameters()}
    moments = sum(v.nbytes for p in trainer.trained.parameters() for v in trainer.optimiser.state_of(p).values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train_step()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    most = max(itertools.accumulate(event.self_cpu_memory_usage for event in events))
    return sum(weights.values()) + moments + most
