"""Loss terms that keep latents from shrinking or losing directions.

Statistics are over all tokens of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.randomness import generator
from dsd_lab.core.shapes import scalar
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Latent

REGULARISERS = Parts("regulariser", check=scalar)
"""(latents z [B, T, c]) -> loss, a scalar; lower is better."""
_DELTA = 0.01
_DIRECTIONS = 64
_KNOTS = 17


@REGULARISERS.add("variance_expansion")
def _variance_expansion(z: Tensor) -> Tensor:
    """Mean over channels of 1 / (s^2 + d), s^2 the variance of a channel, d = 0.01 (arXiv 2603.21085; d is ours)."""
    return (z.flatten(0, 1).var(0, correction=0) + _DELTA).reciprocal().mean()


@REGULARISERS.add("vicreg_variance")
def _vicreg_variance(z: Tensor) -> Tensor:
    """Mean over channels of max(0, 1 - sqrt(s^2 + 1e-4)) (VICReg, Bardes et al., arXiv 2105.04906, eq. 1)."""
    return (1 - (z.flatten(0, 1).var(0) + 1e-4).sqrt()).relu().mean()


@REGULARISERS.add("vicreg_covariance")
def _vicreg_covariance(z: Tensor) -> Tensor:
    """Sum of the squared covariances of different channels over the number of channels (VICReg, eq. 4)."""
    tokens = z.flatten(0, 1)
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / (len(tokens) - 1)  # `cov` does not run on the meta device, which counts FLOPs
    return (covariance - covariance.diag().diag()).square().sum() / len(covariance)


@REGULARISERS.add("sigreg")
def _sigreg(z: Tensor) -> Tensor:
    """SIGReg (Balestriero and LeCun, LeJEPA, arXiv 2511.08544): the Epps-Pulley distance from N(0, I), in random directions.

    Mean over unit directions a of the integral of |E exp(i s a.z) - exp(-s^2 / 2)|^2 exp(-s^2 / 2) ds over [-5, 5], by
    the trapezoid rule at 17 points. LeJEPA draws new directions at every step and multiplies by the number of samples;
    here 64 directions are fixed and there is no such factor.
    """
    tokens = z.flatten(0, 1)
    drawn = torch.randn(_DIRECTIONS, tokens.shape[1], generator=generator(0, "sigreg"))
    directions = torch.nn.functional.normalize(drawn, dim=1).to(tokens)
    s = torch.linspace(-5, 5, _KNOTS).to(tokens)
    angles = (tokens @ directions.T)[..., None] * s
    normal = (-s.square() / 2).exp()
    distance = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return torch.trapezoid(distance * normal, s, dim=-1).mean()


def regularisers(z: Tensor, latent: Latent) -> dict[str, tuple[float, Tensor]]:
    """Name -> (weight, value) of each regulariser with a non-zero weight.

    Args:
        z: latents [B, T, c], float32.
        latent: section `latent` of the spec.
    """
    used = {name: weight for name, weight in latent.regularisers.items() if weight > 0}
    return {name: (weight, REGULARISERS.bound(name, latent)(z)) for name, weight in used.items()}
