"""What a machine can do: matrix products per second, and the memory that a process takes."""

from __future__ import annotations

import torch

from dsd_lab.bench.clock import Clock
from dsd_lab.bench.parts import kernel_by_kernel
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.memory import Storages

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


def tensor_bytes(trainer: Trainer) -> int:
    """Bytes of tensors at most in one of the trainer's steps: weights, moments and copies, and what a step makes beside them.

    This is what a GPU's allocator would tell; a process on the CPU holds libraries and freed memory besides.
    """
    weights = {p.data_ptr(): p.nbytes for part in trainer.kept.values() for p in part.parameters()}
    moments = sum(v.nbytes for p in trainer.trained.parameters() for v in trainer.optimiser.state_of(p).values())
    with kernel_by_kernel(trainer), Storages() as storages:
        trainer.train_step()
    return int(sum(weights.values()) + moments + storages.most)
