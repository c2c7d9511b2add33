"""Exponential moving averages (EMA) of weights: of the whole network, and of the target encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averaging:
    """Updates the EMA of a network's weights.

    Args:
        average: module that holds the averaged weights.
        network: module of the same structure; the parameters of both must stay the same tensors.
    """

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        # Cached: traversing the modules of a small network takes longer than the arithmetic.
        self._average: list[Tensor] = list(average.parameters())
        self._network: list[Tensor] = list(network.parameters())
        self._buffers = list(zip(average.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * network; buffers are copied."""
        torch._foreach_lerp_(self._average, self._network, 1 - decay)
        for ours, theirs in self._buffers:
            ours.copy_(theirs)


def average_name(decay: float, main: float) -> str:
    """Name of the averaged weights of a decay in a checkpoint; `main` is `training.weight_ema`."""
    return "average" if decay == main else f"average@{decay!r}"


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n steps: reduces the weight of the random initialisation."""
    return min(decay, (1 + step) / (10 + step))


def ramped_decay(decay: float, warmup: int, step: int) -> float:
    """decay * min(1, n / warmup) after n steps: from 0 (a copy of the network) to the full decay."""
    return decay * min(1.0, step / warmup) if warmup else decay
