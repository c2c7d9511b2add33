"""Normalisers of the latents: what fixes, or does not fix, their scale before noise is added.

Each is a module built from the number of latent channels that maps [B, T, c] to [B, T, c]. A new
one is a class here, a row of `NORMALISERS`, and its name in the spec's `latent.normaliser`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class NoNormaliser(nn.Module):
    """Latents as the encoder gives them; their scale is free."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, z: Tensor) -> Tensor:
        return z


class LatentLayerNorm(nn.Module):
    """Zero mean and unit variance over the channels of each token (UNITE's choice, without affine)."""

    affine = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=self.affine, eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z)


class AffineLatentLayerNorm(LatentLayerNorm):
    """LayerNorm with a trained scale and shift a channel: the scale is free again, at one speed for all tokens."""

    affine = True


class LatentBatchNorm(nn.Module):
    """Zero mean and unit variance of each channel over batch and tokens, without affine.

    Running statistics are used outside training (momentum 0.1 and eps 1e-5, as torch's defaults).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z.flatten(0, 1)).view_as(z)


NORMALISERS: dict[str, Callable[[int], nn.Module]] = {
    "none": NoNormaliser,
    "layernorm": LatentLayerNorm,
    "layernorm_affine": AffineLatentLayerNorm,
    "batchnorm": LatentBatchNorm,
}
