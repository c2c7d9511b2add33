"""The optimiser, its schedule, and averages of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsd_lab.errors import CorruptCheckpoint

if TYPE_CHECKING:
    from dsd_lab.specs.fields import Optimiser


def build_optimiser(network: nn.Module, spec: Optimiser) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with weight decay on matrices only."""
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), fused=True)


def _tail(progress: float, tail: float) -> float:
    return min(1.0, (1 - progress) / tail)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, tail: 1.0,
    "cosine": lambda progress, tail: 0.5 * (1 + math.cos(math.pi * progress)),
    "tail": _tail,
}


def learning_rate(spec: Optimiser, step: int, steps: int) -> float:
    """Learning rate of the step that follows `step` done ones, of `steps`."""
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.lr * SCHEDULES[spec.schedule](progress, spec.tail)


@torch.no_grad()
def average_into(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, buffers copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for ours, theirs in zip(average.buffers(), network.buffers(), strict=True):
        ours.copy_(theirs)


def warmed_decay(decay: float, step: int) -> float:
    """min(decay, (1 + n) / (10 + n)): an average that forgets its random start."""
    return min(decay, (1 + step) / (10 + step))


def ramped_decay(decay: float, warmup: int, step: int) -> float:
    """decay * min(1, n / warmup) after n steps: from 0, a copy of the network, to the full decay."""
    return decay * min(1.0, step / warmup) if warmup else decay


def tensors_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's state with a prefix on every name."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_tensors(module: nn.Module, prefix: str, tensors: dict[str, Tensor], source: Path) -> None:
    """Put back what `tensors_of` gave; every name must be there.

    Raises:
        CorruptCheckpoint: names or shapes are another network's; the message names `source`.
    """
    ours = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
    try:
        module.load_state_dict(ours)
    except RuntimeError as error:
        first = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise CorruptCheckpoint(f"{source}: the weights of another network: {first}") from None
