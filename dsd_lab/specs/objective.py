"""Fields of the method: latents, objective, times and labels.

The paper (arXiv 2511.14716) does not publish all values; a default of our own is marked "ours".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section
from dsd_lab.specs.part_fields import Choice, PartSection
from dsd_lab.specs.registry import find_plugin_part

LINEAR = "linear"
"""The package's path, the only one with closed forms."""
Weight = Annotated[float, Field(ge=0, le=1e6)]

_NORMS = ("layernorm", "layernorm_affine", "image_rmsnorm", "rmsnorm")
OF_ONE_IMAGE = (*_NORMS, "tanh")
"""Normalisers without noise that do not depend on other images; only these can normalise a prediction."""


class Latent(PartSection):
    """Normalisation and regularisation of the latents."""

    normaliser: Annotated[str, Choice("normaliser")] = "layernorm"
    """`none`: latents are the encoder's output. `layernorm`: LayerNorm over the channels of a token, without affine parameters; `layernorm_affine`: with them. `rmsnorm`: unit mean square over the channels of a token. `image_rmsnorm`: unit mean square over the tokens and channels of an image. `batchnorm`: per channel over batch and tokens, without affine parameters. `tanh`: 3 tanh(z / 3), a bound without a fixed scale. `fixed_noise`: noise is added in training, the scale is free. `kl`: sampled from a predicted mean and variance, as in a VAE (ours: layernorm)."""
    eps: float | None = Field(None, gt=0, le=1)
    """Added to the variance (`rmsnorm`, `image_rmsnorm`: to the mean square) before its root. null: 1e-6, for `batchnorm` 1e-5. UNITE uses 1e-5, REPA-E 1e-4."""
    normalise_prediction: bool = False
    """Pass the denoiser's clean predictions through the latents' normaliser, in training and at every sampling step (UNITE, arXiv 2603.22283). The diffusion loss then also trains the normaliser's weights."""
    decoded: Literal["normalised", "raw"] = "normalised"
    """Input of the decoder: the normalised latents, or the encoder's output (REPA-E, arXiv 2504.10483; only with `batchnorm`). For samples, `raw` inverts the normalisation by running statistics."""
    noise: float = Field(0.1, gt=0, le=10)
    """Standard deviation of the Gaussian noise that `fixed_noise` adds to the latents in training (ours)."""
    kl_weight: float = Field(1e-3, ge=0, le=1e6)
    """Weight of KL(N(mean, variance) | N(0, 1)) under `kl`; the divergence is a mean over tokens and channels (ours)."""
    entropy_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of a bonus for the latents' Gaussian differential entropy, in nats per channel; with any normaliser. 0 switches it off."""
    entropy_floor: float = Field(1e-4, gt=0, le=1)
    """Variance added in every direction of that entropy, so that a direction without variance has a finite cost (ours)."""
    decoder_noise: float = Field(0.0, ge=0, le=10)
    """Standard deviation of Gaussian noise added to the decoder's input in training."""
    regularisers: dict[Annotated[str, Choice("regulariser")], Weight] = {}
    """Weights of loss terms on the latents by name; 0 switches one off. `variance_expansion`: mean of 1 / (variance + 0.01) over channels. `vicreg_variance`, `vicreg_covariance`: VICReg's hinge on the standard deviation, and its squared covariances. `sigreg`: LeJEPA's test of normality in random directions."""

    @model_validator(mode="after")
    def _fits_the_normaliser(self) -> Latent:
        for name, asked, those in (
            ("eps", self.eps is not None, (*_NORMS, "batchnorm")),
            ("normalise_prediction", self.normalise_prediction, OF_ONE_IMAGE),
            ("decoded", self.decoded == "raw", ("batchnorm",)),
        ):
            if asked and self.normaliser not in those:
                raise ValueError(
                    f"{name}: {getattr(self, name)} needs the normaliser {' or '.join(those)}, not {self.normaliser}"
                )
        return self


class Objective(PartSection):
    """The loss: reconstruction_weight * reconstruction + diffusion_weight * diffusion + perceptual_weight * perceptual."""

    reconstruction: Annotated[str, Choice("reconstruction")] = "l2"
    """Pixel loss, mean over pixels in [-1, 1] (ours)."""
    reconstruction_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the pixel loss."""
    perceptual_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the squared distance of decoded and real images in features of a frozen model, mean over features and stages (ours). 0 switches it off."""
    perceptual_backbone: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of that model in timm, such as vgg16."""
    perceptual_weights: str | None = Field(None, min_length=1)
    """Its weights: a safetensors or PyTorch file (relative to the spec file), `pretrained` (timm downloads them) or `random`. Only the file's name is part of a trial's identity."""
    diffusion_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the diffusion loss; 0 is a reconstruction-only control."""
    target: Annotated[str, Choice("target")] = "ema"
    """The regression target z2. `live`: the latent with gradient (joint training). `stop_gradient`: the latent without gradient. `ema`: the latent of the EMA encoder."""
    target_decay: float = Field(0.99, ge=0, lt=1)
    """Decay per step of the EMA target encoder (ours)."""
    target_warmup: int = Field(0, ge=0, le=10**9)
    """Steps over which that decay ramps up: after n steps it is target_decay * min(1, n / target_warmup). 0: no ramp."""
    path: Annotated[str, Choice("path")] = LINEAR
    """The path between noise and data: z_t = t z + (1 - t) e, or a plug-in's. Velocity, weight and `clamp` follow it."""
    noised: Literal["live", "detached"] = "live"
    """Whether the diffusion loss reaches the encoder through z_t (`live`) or not (`detached`)."""
    output: Annotated[str, Choice("output")] = "clean"
    """What the network predicts: `velocity` v (z - e on the linear path), or the `clean` latent f."""
    loss_space: Annotated[str, Choice("loss_space")] = "clean"
    """`velocity`: |v - (z2 - e)|^2. `clean`: w(t) |f - z2|^2."""
    weighting: Annotated[str, Choice("weighting")] = "none"
    """w(t) in clean space: 1, or 1 / max(1 - t, clamp)^2."""
    clamp: float = Field(0.05, gt=0, le=1)
    """Lower bound of 1 - t (on another path of its sigma) in divisions (ours; JiT and UNITE use 0.05)."""
    encoder_gradient: float = Field(1.0, ge=0, le=1)
    """Fraction of the diffusion loss's gradient that reaches the encoder, through z_t and a live target: 0 is a detached encoder, 1 joint training."""
    encoder_gradient_warmup: int = Field(0, ge=0, le=10**9)
    """Steps n over which that fraction rises from 0: encoder_gradient * min(1, step / n), or a logistic curve. 0: no ramp (LDLM, arXiv 2605.07933, uses 50,000)."""
    encoder_gradient_ramp: Literal["linear", "sigmoid"] = "linear"
    """`sigmoid`: the logistic function of 12 (step / n - 1/2), scaled to go from 0 to 1 (its steepness is ours)."""
    anchor_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the pixel anchor: the reconstruction loss between the decoded clean prediction f(z_t) and the image (SpeeDiff, CVPR 2026, with the squared error). Its gradient reaches denoiser and decoder, and the encoder through z_t as the diffusion loss does. 0 switches it off."""
    anchor_perceptual_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the perceptual distance of the same two images; 0 switches it off."""
    balance: Literal["none", "gradient_norm"] = "none"
    """`gradient_norm`: at every step, diffusion, anchor, auxiliary and perceptual losses are scaled so that their gradients with respect to the latents have the norm of the reconstruction's gradient, before weighting (VQGAN's adaptive weight, arXiv 2012.09841; ours here)."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Objective:
        if self.reconstruction_weight == 0 and self.diffusion_weight == 0 and self.perceptual_weight == 0:
            raise ValueError("reconstruction_weight: both loss weights are 0, so nothing would be trained")
        for name in ("anchor_weight", "anchor_perceptual_weight"):
            if getattr(self, name) > 0 and self.diffusion_weight == 0:
                raise ValueError(f"{name}: there is no clean prediction to decode where diffusion_weight is 0")
        uses = next(
            (name for name in ("perceptual_weight", "anchor_perceptual_weight") if getattr(self, name) > 0), None
        )
        if uses and self.perceptual_backbone is None:
            raise ValueError(f"perceptual_backbone: {uses} needs the name of a timm model, such as vgg16")
        if uses and self.perceptual_weights is None:
            raise ValueError(
                f"perceptual_weights: perceptual_backbone {self.perceptual_backbone} needs a file, `pretrained` or `random`"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_path(self) -> Objective:
        """What a plug-in defines without asking for the path holds for the linear one."""
        for kind in ("output", "loss_space"):
            part = find_plugin_part(kind, getattr(self, kind)) if self.path != LINEAR else None
            if part is not None and not part.takes("path"):
                raise ValueError(
                    f"path: {self.path} does not go with the {kind.replace('_', ' ')} {part.name!r} ({part.where}), which has no parameter `path` and so holds for the linear path alone"
                )
        return self


class Time(PartSection):
    """Distribution of the training time t; t = 1 is clean."""

    distribution: Annotated[str, Choice("time_distribution")] = "uniform"
    """Uniform on [0, 1], or the logistic function of a normal variable."""
    mean: float = Field(0.0, ge=-10, le=10)
    """Mean of logit t."""
    std: float = Field(1.0, gt=0, le=10)
    """Standard deviation of logit t."""
    shift: float = Field(1.0, gt=0, le=1000)
    """Drawn times become t / (t + shift (1 - t)), SD3's shift (arXiv 2403.03206) with t = 1 clean. 1: no shift; above 1: more noise. Samplers keep equal steps."""


class Labels(Section):
    """Class conditioning of the denoiser."""

    drop: float = Field(0.1, ge=0, le=1)
    """Probability that a label is replaced by "no class". Guidance needs a value above 0 and below 1. 1 trains and samples without classes."""
