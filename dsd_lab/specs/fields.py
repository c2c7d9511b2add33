"""Every field of a trial, with its default, unit and range.

Where the paper (arXiv 2511.14716) publishes no value, the default is ours and its description
says so. A field is accepted only where something reads it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dsd_lab.specs.sizes import SIZES

SCHEMA_VERSION = 1
"""Part of every trial's identity; raised when a default or the meaning of a field changes."""


class Section(BaseModel):
    """A part of a spec: strict types, finite numbers, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Data(Section):
    """Where the images come from and how they are split."""

    source: Literal["digits", "idx", "parquet"] = "digits"
    """`digits`: scikit-learn's 1,797 8x8 digits. `idx`: MNIST's format. `parquet`: the Hugging Face image layout."""
    path: str | None = None
    """Folder of the files, relative to the spec's file. Not part of a trial's identity; `name` is."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Declared name of the data set. Default: the source, or the folder's name."""
    revision: str = Field("1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Declared revision. Change it when the images change."""
    holdout: float = Field(0.22, gt=0, lt=1)
    """Fraction held out, class by class, where the data has no test split of its own (ours)."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> Data:
        if self.source == "digits" and self.path is not None:
            raise ValueError("path: digits come with scikit-learn; remove `path`, or name the source it belongs to")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path: source {self.source!r} needs the folder that holds its files")
        return self


class Network(Section):
    """One vision transformer in three roles: encode, denoise, decode."""

    size: Literal["nano8", "nano28", "nano32", "nano64", "tiny64", "tiny128", "small256", "middle256", "base256"] = (
        "nano8"
    )
    """A row of the table of sizes; each of the fields below overrides one column of it."""
    layout: Literal["modular", "coupled"] = "modular"
    """`modular`: each role has its own range of blocks. `coupled`: all blocks serve all roles."""
    image_size: int | None = Field(None, ge=2, le=1024)
    """Pixels a side."""
    patch_size: int | None = Field(None, ge=1, le=64)
    """Pixels a side of a patch; one latent token a patch."""
    latent_channels: int | None = Field(None, ge=1, le=1024)
    """Channels of a latent token."""
    width: int | None = Field(None, ge=8, le=8192)
    """Channels of a transformer token."""
    heads: int | None = Field(None, ge=1, le=128)
    """Attention heads."""
    encode_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks that encode (modular)."""
    denoise_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks that denoise (modular)."""
    decode_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks that decode (modular)."""
    shared_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks of the shared stack (coupled)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = values.get("size", "nano8")
        row = SIZES.get(size, {}) if isinstance(size, str) else {}
        return {**row, **{k: v for k, v in values.items() if v is not None or k == "size"}}

    @model_validator(mode="after")
    def _divides(self) -> Network:
        if self.image_size is None or self.patch_size is None or self.width is None or self.heads is None:
            return self  # the size was refused: its own error says so
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size: {self.patch_size} does not divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, as 2D sine position codes need")
        return self


class Latent(Section):
    """What is done to the encoder's output before it is noised and decoded."""

    normaliser: Literal["none", "layernorm", "layernorm_affine", "batchnorm", "fixed_noise", "kl"] = "layernorm"
    """`layernorm`: over the channels of a token. `batchnorm`: per channel over batch and tokens, no affine. `fixed_noise`: free latents plus noise in training. `kl`: a sampled mean and variance (ours: layernorm)."""
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


class Objective(Section):
    """reconstruction_weight * reconstruction + diffusion_weight * diffusion."""

    reconstruction: Literal["l1", "l2"] = "l2"
    """Pixel loss, mean over pixels in [-1, 1] (ours)."""
    reconstruction_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the pixel loss."""
    diffusion_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the diffusion loss; 0 leaves a reconstruction-only control."""
    target: Literal["live", "stop_gradient", "ema"] = "ema"
    """Where the regression target z2 comes from: the encoder with gradient (joint), without, or its EMA copy."""
    target_decay: float = Field(0.99, ge=0, lt=1)
    """Decay a step of the EMA target encoder (ours)."""
    target_warmup: int = Field(0, ge=0, le=10**9)
    """Steps n over which that decay ramps up: target_decay * min(1, n / target_warmup). 0: no ramp."""
    noised: Literal["live", "detached"] = "live"
    """Whether the diffusion loss reaches the encoder through z_t."""
    output: Literal["velocity", "clean"] = "clean"
    """What the network outputs: v = z - e, or the clean latent f."""
    loss_space: Literal["velocity", "clean"] = "clean"
    """`velocity`: |v - (z2 - e)|^2. `clean`: w(t) |f - z2|^2."""
    weighting: Literal["none", "velocity"] = "none"
    """w(t) in clean space: 1, or 1 / max(1 - t, clamp)^2."""
    clamp: float = Field(0.05, gt=0, le=1)
    """Smallest 1 - t that is divided by (ours; JiT and UNITE use 0.05)."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Objective:
        if self.reconstruction_weight == 0 and self.diffusion_weight == 0:
            raise ValueError("reconstruction_weight: both loss weights are 0, so nothing would be trained")
        return self


class Time(Section):
    """Distribution of the training time t; t = 1 is clean."""

    distribution: Literal["uniform", "logit_normal"] = "uniform"
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
    """Probability that a label is replaced by "no class", which guidance needs; 1 trains without classes."""


class Optimiser(Section):
    """AdamW with warm-up and a schedule (all ours: the paper publishes none)."""

    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    weight_decay: float = Field(0.0, ge=0, le=10)
    """Decoupled weight decay of matrices."""
    warmup_steps: int = Field(0, ge=0, le=10**9)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "cosine", "tail"] = "tail"
    """After warm-up: constant, cosine to zero, or constant with a linear tail to zero."""
    tail: float = Field(0.3, gt=0, le=1)
    """Share of the steps that the linear tail takes."""
    clip: float = Field(1.0, gt=0, le=1e6)
    """Largest norm of the gradient."""


class Training(Section):
    """Length and arithmetic of training."""

    steps: int = Field(1000, ge=1, le=10**9)
    """Optimiser steps."""
    batch_size: int = Field(64, ge=1, le=10**6)
    """Images an optimiser step, over all processes (the global batch)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs the network's matrix products in bfloat16; weights and losses stay in float32."""
    weight_ema: float = Field(0.99, ge=0, lt=1)
    """Decay a step of the averaged weights that are sampled from (ours)."""


class Probe(Section):
    """Latent metrics on a fixed set of held-out images."""

    every: int = Field(100, ge=1, le=10**9)
    """Steps between probes; the first and the last step are always probed."""
    images: int = Field(256, ge=2, le=10**5)
    """Held-out images in the probe set (all of them where there are fewer)."""
    t_bins: int = Field(5, ge=1, le=100)
    """Equal bins of t in which the rank gap is measured."""
    gradient_images: int = Field(32, ge=0, le=4096)
    """Images in the batch on which gradients are compared; 0 leaves the comparison out."""


class Observation(Section):
    """What is recorded while training; none of it changes the result."""

    log_every: int = Field(20, ge=1, le=10**9)
    """Steps between loss records; a record is the mean since the last one."""
    checkpoint_every: int = Field(500, ge=1, le=10**9)
    """Steps between checkpoints; a killed trial loses at most these."""
    checkpoints_kept: int = Field(2, ge=1, le=1000)
    """Complete checkpoints kept while training."""
    images_every: int = Field(500, ge=1, le=10**9)
    """Steps between grids of reconstructions and samples; always drawn at the end."""
    images: int = Field(20, ge=1, le=400)
    """Images in a grid."""


class Resources(Section):
    """What one trial occupies."""

    cpus: float = Field(1.0, gt=0, le=4096)
    """Logical CPUs."""
    gpus: float = Field(0.0, ge=0, le=64)
    """GPUs; a fraction shares one."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads of a trial's matrix products. Fixed here, since sums on a CPU depend on it in the last bit."""

    patience: float = Field(3600.0, gt=0, le=1e7)
    """Seconds without an optimiser step after which a trial is taken for one that hangs: its stacks go to `hang.txt`, its process ends, a sweep takes it up again."""

    @model_validator(mode="after")
    def _whole_or_fraction(self) -> Resources:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus} is neither a fraction of one GPU nor a whole number of them")
        return self


class Trial(Section):
    """All fields of one trial."""

    data: Data = Data()
    network: Network = Network()
    latent: Latent = Latent()
    objective: Objective = Objective()
    time: Time = Time()
    labels: Labels = Labels()
    optimiser: Optimiser = Optimiser()
    training: Training = Training()
    probe: Probe = Probe()
    observation: Observation = Observation()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits_together(self) -> Trial:
        if self.optimiser.warmup_steps > self.training.steps:
            raise ValueError(
                f"optimiser.warmup_steps: {self.optimiser.warmup_steps} is more than training.steps ({self.training.steps})"
            )
        return self


class Generation(Section):
    """An evaluation of generated images with an extractor trained on the data set itself."""

    sampler: Literal["euler", "heun"] = "heun"
    """Solver of the probability-flow equation."""
    steps: int = Field(25, ge=1, le=10_000)
    """Solver steps; Heun calls the network twice in each but the last."""
    guidance: float = Field(1.0, ge=0, le=100)
    """Classifier-free guidance scale; 1 is no guidance."""
    weights: Literal["ema", "trained"] = "ema"
    """Averaged weights, or those of the last step."""
    images: int | Literal["holdout"] = "holdout"
    """`holdout`: as many as there are held-out images, with their labels, so that the real-against-real floor has the same N and class mix. A number: that many, labels balanced over classes."""

    @model_validator(mode="after")
    def _enough(self) -> Generation:
        if isinstance(self.images, int) and not 2 <= self.images <= 10**6:
            raise ValueError(f"images: {self.images} is not between 2 and 1,000,000")
        return self
