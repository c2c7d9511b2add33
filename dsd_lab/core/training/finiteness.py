"""Checks that losses and gradients are finite, without synchronising host and GPU.

A GPU runs asynchronously: reading a step's loss at once would stall both. On a GPU the host therefore learns of a
non-finite step one step later. Meanwhile a scalar on the device, which torch's fused optimisers read, prevents updates
of the weights.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.training.events import Diverged

if TYPE_CHECKING:
    from dsd_lab.core.training.optimiser import Optimisers


class Finiteness:
    """Checks every step of a training run.

    Args:
        device: device of the losses.
        optimiser: must not step after a non-finite loss or gradient.
        delay: steps until the host reads a result, 0 or more. None: 1 on a GPU if every part of the optimiser can skip
            a step by itself, else 0.
    """

    def __init__(self, device: torch.device, optimiser: Optimisers, delay: int | None = None) -> None:
        chosen = 1 if device.type == "cuda" and optimiser.can_skip else 0
        self._delay, self._on_gpu = chosen if delay is None else delay, device.type == "cuda"
        self._skip = torch.zeros((), device=device)
        """1 from the first non-finite step on, else 0: later steps must not be taken either."""
        if self._delay:
            optimiser.skip_where(self._skip)
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Check the loss and the gradient norm of a step, scalars on the device."""
        finite = torch.stack([torch.isfinite(loss), torch.isfinite(norm)])
        if not self._delay:
            self._pending.append((step, finite, None))
            return
        self._skip.copy_(torch.maximum(self._skip, (~finite).any().float()))
        there = torch.empty(2, dtype=torch.bool, pin_memory=self._on_gpu)
        there.copy_(finite, non_blocking=True)
        done = None
        if self._on_gpu:
            done = torch.cuda.Event()
            done.record()
        self._pending.append((step, there, done))

    def diverged(self, wait: bool = False) -> Diverged | None:
        """The first non-finite step among those that the host knows of; with `wait`, among all."""
        while len(self._pending) > (0 if wait else self._delay):
            step, finite, done = self._pending.popleft()
            if done is not None:
                done.synchronize()
            if not bool(finite.all()):
                what = "gradient" if bool(finite[0]) else "loss"
                return Diverged(step, f"the {what} of step {step + 1} is not finite")
        return None
