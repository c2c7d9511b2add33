"""What a device could do at best: matrix products at a trial's precision, measured in the run that they are compared with."""

from __future__ import annotations

import torch

from dsd_lab.benchmarks.clock import Clock

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
