"""Balancing of loss terms: a factor for each term, computed at every step and multiplied with its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.peers import Peers

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Objective

DELTA, MAX_FACTOR = 1e-6, 1e4
"""Constant added to the denominator, and maximum factor; both from VQGAN's paper and code."""


def _none(reconstruction: Tensor | None, terms: Mapping[str, Tensor], z: Tensor, peers: Peers) -> dict[str, Tensor]:
    return {}


def _gradient_norm(
    reconstruction: Tensor | None, terms: Mapping[str, Tensor], z: Tensor, peers: Peers
) -> dict[str, Tensor]:
    """VQGAN's adaptive weight (Esser et al., arXiv 2012.09841, eq. 7): |grad L_rec| / (|grad L| + delta), at most 1e4.

    VQGAN takes gradients with respect to the decoder's last layer. Here they are with respect to the latents
    z [B, T, c], which all these losses share. Norms are over the whole batch and before weighting, so that weights
    are ratios of gradient norms. A term without a gradient at z, or with a zero one, is not scaled.
    """
    target = None if reconstruction is None else _norm(reconstruction, z, peers)
    factors: dict[str, Tensor] = {}
    for name, term in terms.items() if target is not None else ():
        norm = _norm(term, z, peers)
        if norm is not None and target is not None:
            factor = (target / (norm + DELTA)).clamp(0, MAX_FACTOR)
            factors[name] = torch.where(norm == 0, torch.ones_like(factor), factor)
    return factors


def _norm(term: Tensor, z: Tensor, peers: Peers) -> Tensor | None:
    if not (term.requires_grad and z.requires_grad):
        return None
    own = term if peers.alone else term * peers.share
    (gradient,) = torch.autograd.grad(own, z, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    return gradient.norm() if peers.alone else peers.total(gradient.square().sum()).sqrt()


BALANCES: dict[str, Callable[[Tensor | None, Mapping[str, Tensor], Tensor, Peers], dict[str, Tensor]]] = {
    "none": _none,
    "gradient_norm": _gradient_norm,
}
"""(reconstruction loss, other losses by name, latents z [B, T, c], processes) -> factors by name, without gradient.

A missing factor is 1."""


# -- The fraction of the diffusion loss's gradient that reaches the encoder ---------------------------


RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "sigmoid": lambda progress: (
        _logistic(12 * (progress - 0.5)) / (2 * _logistic(6.0) - 1) + 0.5 - 0.5 / (2 * _logistic(6.0) - 1)
    ),
}
"""(fraction of the warm-up, 0 to 1) -> fraction of the full gradient, 0 to 1."""


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def encoder_gradient(spec: Objective, step: int) -> float:
    """Fraction of the diffusion loss's gradient that reaches the encoder, after `step` optimiser steps."""
    if spec.encoder_gradient_warmup == 0 or step >= spec.encoder_gradient_warmup:
        return spec.encoder_gradient
    return spec.encoder_gradient * RAMPS[spec.encoder_gradient_ramp](step / spec.encoder_gradient_warmup)


def with_gradient(z: Tensor, share: float) -> Tensor:
    """z [B, T, c] unchanged; its gradient is multiplied by `share` in [0, 1]."""
    return z if share == 1 else z.detach() + share * (z - z.detach())
