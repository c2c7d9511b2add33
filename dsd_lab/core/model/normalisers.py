"""Normalisers of the latents: they fix the scale of latents before noise is added, or leave it free.

A new normaliser is one subclass of `Normaliser` with a name, which `latent.normaliser` then accepts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsd_lab.core.shapes import like_first
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Latent


NORMALISERS = Parts("normaliser")
"""Name -> subclass of `Normaliser`, built from the number of latent channels and the section `latent`."""


class Normaliser(nn.Module, ABC):
    """Maps the encoder's output [B, T, inputs * c] to latents [B, T, c].

    `inputs` is the number of encoder outputs per latent channel. `noisy` means that training passes noise
    [B, T, c] ~ N(0, I); without noise, as in probes and evaluation, the map is deterministic. `whole_batch` means that
    in training a latent depends on the other images of the batch: processes then exchange their encoder outputs.
    """

    inputs = 1
    noisy = False
    whole_batch = False

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents [B, T, c] of the encoder's output."""

    def settled(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents [B, T, c] by running statistics, also in training mode; without such statistics, as `forward`."""
        latents: Tensor = self(raw, noise)
        return latents

    def undone(self, z: Tensor) -> Tensor:
        """Inverse of `forward` by running statistics: latents [B, T, c] -> encoder output; not every subclass has one."""
        raise NotImplementedError

    def penalties(self, raw: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, unweighted scalar loss) of each loss term of the normaliser."""
        return {}


def build_normaliser(channels: int, latent: Latent) -> Normaliser:
    """The normaliser that a spec names. The output shape of a plug-in's normaliser is checked at every call."""
    part = NORMALISERS.part(latent.normaliser)
    made: Normaliser = NORMALISERS.bound(latent.normaliser, latent)(channels, latent)
    if part.plugin is not None:

        def check(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
            if (wrong := like_first(found, given[0][..., :channels])) is not None:
                raise part.fault(wrong)

        made.register_forward_hook(check)
    return made


@NORMALISERS.add("none")
class NoNormaliser(Normaliser):
    """The encoder's output unchanged; the scale is free."""

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return raw


@NORMALISERS.add("layernorm")
class LatentLayerNorm(Normaliser):
    """Zero mean and unit variance over the channels of each token: (z - mean) / sqrt(variance + eps), eps 1e-6."""

    affine = False

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.norm = nn.LayerNorm(channels, elementwise_affine=self.affine, eps=1e-6 if spec.eps is None else spec.eps)

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.norm(raw)


@NORMALISERS.add("layernorm_affine")
class AffineLatentLayerNorm(LatentLayerNorm):
    """LayerNorm with a trained scale and shift per channel: the scale is free, but common to all tokens.

    Used by UNITE with eps 1e-5 (arXiv 2603.22283, models/unite.py).
    """

    affine = True


@NORMALISERS.add("image_rmsnorm")
class ImageRMSNorm(Normaliser):
    """Unit mean square over the tokens and channels of each image: z / sqrt(mean z^2 + eps), eps 1e-6, no scale.

    Used by LDM-is-AE (arXiv 2609.37080, backbone/dit.py), whose encoder then adds a bypass of the image. The mean is
    kept, and so are differences in scale between the tokens of an image.
    """

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.eps = 1e-6 if spec.eps is None else spec.eps

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return raw * (raw.square().mean((-2, -1), keepdim=True) + self.eps).rsqrt()


@NORMALISERS.add("rmsnorm")
class RMSNorm(Normaliser):
    """Unit mean square over the channels of each token: z / sqrt(mean z^2 + eps), eps 1e-6 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.eps = 1e-6 if spec.eps is None else spec.eps

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return raw * (raw.square().mean(-1, keepdim=True) + self.eps).rsqrt()


@NORMALISERS.add("tanh")
class Tanh(Normaliser):
    """z = 3 tanh(raw / 3): latents in (-3, 3); below that bound the scale is free (JEDI, arXiv 2605.13013)."""

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return 3 * (raw / 3).tanh()


@NORMALISERS.add("batchnorm")
class LatentBatchNorm(Normaliser):
    """Zero mean and unit variance of each channel over batch and tokens, without affine parameters.

    Outside training it uses running statistics (momentum 0.1 and eps 1e-5, torch's defaults; REPA-E,
    arXiv 2504.10483, has eps 1e-4).
    """

    whole_batch = True

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.norm = nn.BatchNorm1d(channels, affine=False, eps=1e-5 if spec.eps is None else spec.eps)

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.norm(raw.flatten(0, 1)).view_as(raw)

    def settled(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """(raw - running mean) / sqrt(running variance + eps): the scale of raw is free; no statistic is updated."""
        mean, std = self._running()
        return (raw - mean) / std

    def undone(self, z: Tensor) -> Tensor:
        """z sqrt(running variance + eps) + running mean."""
        mean, std = self._running()
        return z * std + mean

    def _running(self) -> tuple[Tensor, Tensor]:
        """Running mean and standard deviation [c]; copies, since training updates the statistics in place."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return mean.clone(), (variance + self.norm.eps).sqrt()


@NORMALISERS.add("fixed_noise")
class FixedNoise(Normaliser):
    """z = raw + std * noise in training: the scale is free, but latents much smaller than std carry no information.

    Unlike `decoder_noise`, this noise is part of the latent that is noised, decoded and predicted.
    """

    noisy = True

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.std = spec.noise

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        return raw if noise is None else raw + self.std * noise


@NORMALISERS.add("kl")
class KLNormaliser(Normaliser):
    """z = mean + std * noise with KL(N(mean, std^2) | N(0, 1)) as a loss term (Kingma and Welling, arXiv 1312.6114).

    The encoder's output is the mean [B, T, c] followed by the log variance [B, T, c], clamped to [-30, 20] as in
    latent diffusion (Rombach et al., arXiv 2112.10752). Without noise, z is the mean.
    """

    inputs = 2
    noisy = True

    def __init__(self, channels: int, spec: Latent) -> None:
        super().__init__(channels, spec)
        self.weight = spec.kl_weight

    def forward(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, log_variance = _moments(raw)
        return mean if noise is None else mean + (0.5 * log_variance).exp() * noise

    def penalties(self, raw: Tensor) -> dict[str, tuple[float, Tensor]]:
        return {"kl": (self.weight, divergence_from_normal(*_moments(raw.float())))}


def _moments(raw: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = raw.chunk(2, dim=-1)
    return mean, log_variance.clamp(-30, 20)


def divergence_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) | N(0, 1)) = (m^2 + s^2 - 1 - ln s^2) / 2 in nats, mean over all elements of [B, T, c]; a scalar."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def gaussian_entropy(z: Tensor, floor: float) -> Tensor:
    """Differential entropy in nats per channel of a Gaussian with the covariance of the tokens of z [B, T, c]; a scalar.

    H / c = (ln(2 pi e) + logdet(S + floor I) / c) / 2, where S [c, c] is the covariance of the batch's B T tokens
    (divided by B T). It is an upper bound of the latents' entropy, since a Gaussian has the largest entropy for a given
    covariance. Computed in float64, since small eigenvalues matter most.
    """
    tokens = z.double().flatten(0, 1)
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / len(tokens)
    size = covariance.shape[0]
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    logdet = torch.linalg.slogdet(covariance + floor * eye).logabsdet  # NaN, not an error, where z is not finite
    return 0.5 * (math.log(2 * math.pi * math.e) + logdet / size)
