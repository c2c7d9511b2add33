"""The path from noise to data, its time distributions, and conversions between clean and velocity predictions.

z_t = t z + (1 - t) e with e ~ N(0, I); t = 1 is clean. Velocity v = dz_t/dt = z - e (rectified flow: Liu et al.,
arXiv 2209.03003; Lipman et al., arXiv 2210.02747).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.shapes import count_second
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Time


def noised(z: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """z_t = t z + (1 - t) e; z, e [B, ...], t [B]."""
    t = _like(t, z)
    return t * z + (1 - t) * e


def clean_from_velocity(v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """f = z_t + (1 - t) v; v, z_t [B, ...], t [B]."""
    return z_t + (1 - _like(t, z_t)) * v


def velocity_from_clean(f: Tensor, z_t: Tensor, t: Tensor, clamp: float) -> Tensor:
    """v = (f - z_t) / max(1 - t, clamp); f, z_t [B, ...], t [B]."""
    return (f - z_t) / (1 - _like(t, z_t)).clamp_min(clamp)


def _like(t: Tensor, z: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (z.dim() - 1))


TIME_DISTRIBUTIONS = Parts("time_distribution", check=count_second)
"""(section `time`, count, generator) -> times [count] in [0, 1], before the shift."""


@TIME_DISTRIBUTIONS.add("uniform")
def _uniform(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1]."""
    return torch.rand(count, generator=generator, device=generator.device)


@TIME_DISTRIBUTIONS.add("logit_normal")
def _logit_normal(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """The logistic function of a normal variable (`mean`, `std`)."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.sigmoid(spec.mean + spec.std * normal)


def shifted(t: Tensor, shift: float) -> Tensor:
    """t / (t + shift (1 - t)) for times t [N]: the noise level s = 1 - t becomes shift s / (1 + (shift - 1) s).

    Equation 23 of Esser et al. (SD3, arXiv 2403.03206), whose t is our s and whose sqrt(m / n) is `shift`. logit t
    decreases by ln shift. A shift of 1 returns t bitwise.
    """
    return t if shift == 1 else t / (t + shift * (1 - t))


def draw_times(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """Training times [count] in [0, 1] from the spec's distribution, shifted."""
    return shifted(TIME_DISTRIBUTIONS.bound(spec.distribution, spec)(spec, count, generator), spec.shift)
