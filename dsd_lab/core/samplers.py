"""Samplers of the probability-flow equation dz/dt = v(z, t), from noise (t = 0) to clean (t = 1).

Each takes a velocity function and integrates over equal steps; a new one is a function here, a row
of `SAMPLERS` and its name in the spec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.objectives import OUTPUTS

if TYPE_CHECKING:
    from dsd_lab.core.network import Network
    from dsd_lab.specs.fields import Objective

Velocity = Callable[[Tensor, Tensor], Tensor]


def euler(velocity: Velocity, z: Tensor, steps: int) -> Tensor:
    """Forward Euler; `steps` network calls."""
    for i in range(steps):
        z = z + velocity(z, _time(i / steps, z)) / steps
    return z


def heun(velocity: Velocity, z: Tensor, steps: int) -> Tensor:
    """Heun's second-order method; the last step is Euler's, since a clean network's velocity is singular at t = 1."""
    for i in range(steps):
        v = velocity(z, _time(i / steps, z))
        if i < steps - 1:
            v = (v + velocity(z + v / steps, _time((i + 1) / steps, z))) / 2
        z = z + v / steps
    return z


SAMPLERS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {"euler": euler, "heun": heun}


def _time(t: float, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, device=z.device)


def guided_velocity(network: Network, y: Tensor, guidance: float, objective: Objective) -> Velocity:
    """v = v(no class) + guidance * (v(y) - v(no class)) (Ho and Salimans, arXiv 2207.12598); 1 costs one pass.

    A clean network's velocity is (f - z_t) / (1 - t) exactly: samplers never ask for t = 1, so the
    training clamp does not apply and the last Euler step lands on f.
    """
    nothing = torch.full_like(y, network.classes)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        def one(labels: Tensor) -> Tensor:
            return OUTPUTS[objective.output](network.denoise(z, t, labels).float(), z, t, 1e-6)[1]

        v = one(y)
        if guidance == 1:
            return v
        without = one(nothing)
        return without + guidance * (v - without)

    return velocity


@torch.no_grad()
def sample_latents(
    network: Network, noise: Tensor, y: Tensor, sampler: str, steps: int, guidance: float, objective: Objective
) -> Tensor:
    """Latents [B, T, c] for labels y [B] from noise [B, T, c]."""
    return SAMPLERS[sampler](guided_velocity(network, y, guidance, objective), noise, steps)
