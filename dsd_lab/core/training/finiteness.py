"""Whether the losses and gradients of the steps are finite, asked without holding up a GPU.

A GPU runs behind the host that feeds it: to hear of a step's loss at once, the host would have to
wait, and the GPU then waits for the host. There the host is told one step late. What keeps the
steps from moving weights meanwhile is a number on the device that torch's fused optimisers read.
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
    """Watches every step of a training.

    Args:
        device: of the losses.
        optimiser: what must not step where they are not finite.
        delay: steps after which the host is told, 0 or more; None chooses: 1 on a GPU, 0 elsewhere, and
            where a part of the optimiser cannot skip a step by itself.
    """

    def __init__(self, device: torch.device, optimiser: Optimisers, delay: int | None = None) -> None:
        chosen = 1 if device.type == "cuda" and optimiser.can_skip else 0
        self._delay, self._on_gpu = chosen if delay is None else delay, device.type == "cuda"
        self._skip = torch.zeros((), device=device)
        """1 from the first step on that was not finite, else 0: no later step has gradients of the right weights."""
        if self._delay:
            optimiser.skip_where(self._skip)
        self._told: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take notice of the loss and the gradient's norm of a step, scalars on the device."""
        finite = torch.stack([torch.isfinite(loss), torch.isfinite(norm)])
        if not self._delay:
            self._told.append((step, finite, None))
            return
        self._skip.copy_(torch.maximum(self._skip, (~finite).any().float()))
        there = torch.empty(2, dtype=torch.bool, pin_memory=self._on_gpu)
        there.copy_(finite, non_blocking=True)
        done = None
        if self._on_gpu:
            done = torch.cuda.Event()
            done.record()
        self._told.append((step, there, done))

    def diverged(self, wait: bool = False) -> Diverged | None:
        """The first step that was not finite, of those that the host is told of by now; with `wait`, of all."""
        while len(self._told) > (0 if wait else self._delay):
            step, finite, done = self._told.popleft()
            if done is not None:
                done.synchronize()
            if not bool(finite.all()):
                what = "gradient" if bool(finite[0]) else "loss"
                return Diverged(step, f"the {what} of step {step + 1} is not finite")
        return None
