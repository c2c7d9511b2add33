"""Fields of the method: network, latents, objective, times and labels.

Where the paper (arXiv 2511.14716) publishes no value, the default is ours and its description says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section
from dsd_lab.specs.part_fields import Choice, PartSection

Weight = Annotated[float, Field(ge=0, le=1e6)]

_NORMS = ("layernorm", "layernorm_affine", "image_rmsnorm", "rmsnorm")
OF_ONE_IMAGE = (*_NORMS, "tanh")
"""Normalisers that take an image by itself, noise-free: they have the same effect on a prediction."""


class Latent(PartSection):
    """What is done to the encoder's output before it is noised and decoded."""

    normaliser: Annotated[str, Choice("normaliser")] = "layernorm"
    """`layernorm`: over the channels of a token. `image_rmsnorm`: unit mean square over the tokens and channels of an image. `rmsnorm`: unit mean square over the channels of a token. `batchnorm`: per channel over batch and tokens, no affine. `tanh`: 3 tanh(z / 3), a bound that fixes no scale. `fixed_noise`: free latents plus noise in training. `kl`: a sampled mean and variance (ours: layernorm)."""
    eps: float | None = Field(None, gt=0, le=1)
    """What the norms add to the variance (`image_rmsnorm`: to the mean square) before its root; null: 1e-6, for `batchnorm` 1e-5. UNITE has 1e-5, REPA-E 1e-4."""
    normalise_prediction: bool = False
    """Pass the denoiser's clean predictions through the latents' normaliser, with its weights, in training and at every sampling step (UNITE, arXiv 2603.22283). A trained scale is then reached by the diffusion loss too."""
    decoded: Literal["normalised", "raw"] = "normalised"
    """What the decoder reads: the normalised latents, or the encoder's output, for samples by the running statistics (REPA-E, arXiv 2504.10483; `batchnorm` alone)."""
    noise: float = Field(0.1, gt=0, le=10)
    """Standard deviation of the Gaussian noise that `fixed_noise` adds to the latents in training (ours)."""
    kl_weight: float = Field(1e-3, ge=0, le=1e6)
    """Weight of KL(N(mean, variance) | N(0, 1)) under `kl`, the divergence being a mean over tokens and channels (ours)."""
    entropy_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of a bonus on the latents' Gaussian differential entropy, in nats a channel; with any normaliser; 0 leaves it out."""
    entropy_floor: float = Field(1e-4, gt=0, le=1)
    """Variance added to every direction in that entropy, so that a lost direction costs a finite amount (ours)."""
    decoder_noise: float = Field(0.0, ge=0, le=10)
    """Standard deviation of Gaussian noise added to the decoder's input in training."""
    regularisers: dict[Annotated[str, Choice("regulariser")], Weight] = {}
    """Weights of loss terms on the latents, by name; 0 leaves one out. `variance_expansion`: mean of 1 / (variance + 0.01) over channels. `vicreg_variance`, `vicreg_covariance`: VICReg's hinge on the standard deviation and its squared covariances. `sigreg`: a sketched test of normality."""

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
    """reconstruction_weight * reconstruction + diffusion_weight * diffusion + perceptual_weight * perceptual."""

    reconstruction: Annotated[str, Choice("reconstruction")] = "l2"
    """Pixel loss, mean over pixels in [-1, 1] (ours)."""
    reconstruction_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the pixel loss."""
    perceptual_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the squared distance of decoded and real images in features of a frozen model, a mean over features and stages; 0 leaves it out (ours)."""
    perceptual_backbone: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name of that model in timm, such as vgg16."""
    perceptual_weights: str | None = Field(None, min_length=1)
    """Its weights: a safetensors or PyTorch file, relative to the file that names it, or `pretrained` (timm downloads them), or `random`. Only the file's name is in a trial's identity."""
    diffusion_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the diffusion loss; 0 leaves a reconstruction-only control."""
    target: Annotated[str, Choice("target")] = "ema"
    """Where the regression target z2 comes from: the encoder with gradient (joint), without, or its EMA copy."""
    target_decay: float = Field(0.99, ge=0, lt=1)
    """Decay a step of the EMA target encoder (ours)."""
    target_warmup: int = Field(0, ge=0, le=10**9)
    """Steps n over which that decay ramps up: target_decay * min(1, n / target_warmup). 0: no ramp."""
    noised: Literal["live", "detached"] = "live"
    """Whether the diffusion loss reaches the encoder through z_t."""
    output: Annotated[str, Choice("output")] = "clean"
    """What the network outputs: v = z - e, or the clean latent f."""
    loss_space: Annotated[str, Choice("loss_space")] = "clean"
    """`velocity`: |v - (z2 - e)|^2. `clean`: w(t) |f - z2|^2."""
    weighting: Annotated[str, Choice("weighting")] = "none"
    """w(t) in clean space: 1, or 1 / max(1 - t, clamp)^2."""
    clamp: float = Field(0.05, gt=0, le=1)
    """Smallest 1 - t that is divided by (ours; JiT and UNITE use 0.05)."""
    encoder_gradient: float = Field(1.0, ge=0, le=1)
    """Share of the diffusion loss' gradient that reaches the encoder, through z_t and a live target; a number between the detached (0) and the joint (1) encoder."""
    encoder_gradient_warmup: int = Field(0, ge=0, le=10**9)
    """Steps n over which that share rises from 0, as encoder_gradient * min(1, step / n) or along a logistic curve; 0: no ramp (LDLM, arXiv 2605.07933: 50,000)."""
    encoder_gradient_ramp: Literal["linear", "sigmoid"] = "linear"
    """`sigmoid`: the logistic function of 12 (step / n - 1/2), scaled to go from 0 to 1 (its steepness is ours)."""
    anchor_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the pixel anchor: the reconstruction loss of the decoded clean prediction f(z_t) against the image (SpeeDiff, CVPR 2026, where it is the squared error). Its gradient reaches denoiser, decoder and, as the diffusion loss does through z_t, the encoder. 0 leaves it out."""
    anchor_perceptual_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of the perceptual distance of the same two images; 0 leaves it out."""
    balance: Literal["none", "gradient_norm"] = "none"
    """`gradient_norm`: at every step, diffusion, auxiliary and perceptual losses are scaled so that their gradients with respect to the latents have the norm of the reconstruction's, before their weights (VQGAN's adaptive weight, arXiv 2012.09841; ours here)."""

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


class Time(PartSection):
    """Distribution of the training time t; t = 1 is clean."""

    distribution: Annotated[str, Choice("time_distribution")] = "uniform"
    """Uniform on [0, 1], or the logistic function of a normal variable."""
    mean: float = Field(0.0, ge=-10, le=10)
    """Mean of logit t."""
    std: float = Field(1.0, gt=0, le=10)
    """Standard deviation of logit t."""
    shift: float = Field(1.0, gt=0, le=1000)
    """Drawn times become t / (t + shift (1 - t)), SD3's shift with t = 1 clean (arXiv 2403.03206): above 1 more noise, 1 none. Samplers keep equal steps."""


class Labels(Section):
    """Class conditioning of the denoiser."""

    drop: float = Field(0.1, ge=0, le=1)
    """Probability that a label is replaced by "no class", which guidance needs (above 0 and below 1). 1 trains without classes, and samples are then drawn without one too."""
