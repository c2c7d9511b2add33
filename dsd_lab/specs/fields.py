"""Every field of a trial, with its default, unit and range.

Where the paper (arXiv 2511.14716) publishes no value, the default is ours and its description
says so. A field is accepted only where something reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

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
    layout: Literal["modular", "coupled", "separate"] = "modular"
    """`modular`: each role has its own range of blocks. `coupled`: all blocks serve all roles. `separate`: three networks, whose gradients are clipped apart."""
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
    """Largest norm of the gradient; under layout `separate`, of each network's."""
    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: orthogonalised momentum (Jordan et al. 2024) for the matrices of blocks, AdamW for the rest, at one learning rate."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's Nesterov momentum."""
    encoder_lr_factor: float = Field(1.0, gt=0, le=100)
    """Learning rate of the encoder's own weights, as a multiple of the others' (layouts with an encoder of its own). LDM-is-AE's slow encoder has 0.001 (arXiv 2609.37080)."""


ROLES = ("encode", "denoise", "decode")


def _changes(section: type[Section]) -> type[Section]:
    """A section of which any part may be given: fields without default, checked as the section checks them."""
    parts: dict[str, Any] = {}
    for name, info in section.model_fields.items():
        kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        parts[name] = (kind | None, Field(None, description=info.description))
    return create_model(f"{section.__name__}Changes", __base__=Section, **parts)


ObjectiveChanges: Any = _changes(Objective)


class Phase(Section):
    """What changes from a step on."""

    start: int | float = Field(ge=0, le=10**9)
    """First step of the phase: a step (0 is the first), or below 1 and with a decimal point a share of `steps`."""
    objective: ObjectiveChanges | None = None
    """Fields of the objective that change."""
    frozen: list[Literal["encode", "denoise", "decode"]] = []
    """Roles whose weights do not move in this phase; nothing is computed backwards through their weights."""


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
    more_emas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([], max_length=8)
    """Further decays whose averages are kept beside it, for evaluations with `weights: ema:DECAY`."""
    accumulate: int = Field(1, ge=1, le=10**6)
    """Parts that the batch is cut into; gradients are summed over them before the optimiser's step."""
    flow_steps: int = Field(1, ge=1, le=64)
    """Draws of noise and time an image for the diffusion loss, which is their mean; the encoder runs once (UNITE's k, arXiv 2603.22283, which sums them: multiply `diffusion_weight` by k)."""
    phases: list[Phase] = Field([], max_length=16)
    """Changes of the objective in mid-training, in order: staged training, and interventions. Each lays its changes on the phase before it."""


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

    @model_validator(mode="after")
    def _whole_or_fraction(self) -> Resources:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus} is neither a fraction of one GPU nor a whole number of them")
        return self


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one objective."""

    start: int
    trial: Trial
    """The trial with the objective of this stretch."""
    frozen: frozenset[str]


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
        training = self.training
        if self.optimiser.warmup_steps > training.steps:
            raise ValueError(
                f"optimiser.warmup_steps: {self.optimiser.warmup_steps} is more than training.steps ({training.steps})"
            )
        if training.batch_size % training.accumulate:
            raise ValueError(
                f"training.accumulate: {training.accumulate} does not divide batch_size {training.batch_size}"
            )
        if training.accumulate > 1 and (self.latent.normaliser == "batchnorm" or self.latent.entropy_weight > 0):
            what = "batchnorm" if self.latent.normaliser == "batchnorm" else "the entropy bonus"
            raise ValueError(f"training.accumulate: {what} is taken over a whole batch, which parts do not give")
        if self.network.layout == "coupled":
            if self.optimiser.encoder_lr_factor != 1:
                raise ValueError(
                    "optimiser.encoder_lr_factor: under layout 'coupled' the encoder has no blocks of its own"
                )
            if any(phase.frozen for phase in training.phases):
                raise ValueError(
                    "training.phases: under layout 'coupled' all roles share their blocks, so none can be frozen"
                )
        self.stages()
        return self

    def stages(self) -> list[Stage]:
        """The stretches of training, the first from step 0 on.

        Raises:
            ValueError: phases are not in order or not within the steps, or changes do not fit together.
        """
        steps = self.training.steps
        found = [Stage(0, self, frozenset())]
        for index, phase in enumerate(self.training.phases):
            where = f"training.phases.{index}"
            start = round(phase.start * steps) if isinstance(phase.start, float) and phase.start < 1 else phase.start
            if start != int(start) or not start < steps:
                raise ValueError(f"{where}.start: {phase.start} is neither a step before {steps} nor a share below 1")
            if index and start <= found[-1].start:
                raise ValueError(
                    f"{where}.start: step {start:g} is not after step {found[-1].start}, where the phase before starts"
                )
            before = found[-1].trial.objective
            changes = {} if phase.objective is None else phase.objective.model_dump(exclude_none=True)
            try:
                objective = Objective.model_validate(before.model_dump() | changes)
            except ValidationError as error:
                raise ValueError(f"{where}.objective: {error.errors()[0]['msg']}") from None
            if not trained_roles(objective, self.latent) - set(phase.frozen):
                raise ValueError(
                    f"{where}.frozen: no loss of this phase reaches a role that is not frozen, so nothing would be trained"
                )
            stage = Stage(int(start), self.model_copy(update={"objective": objective}), frozenset(phase.frozen))
            found = [stage] if start == 0 else [*found, stage]
        return found

    @property
    def needs_target_encoder(self) -> bool:
        """Whether any stage takes something from an EMA copy of the encoder."""
        return any(uses_target_encoder(s.trial.objective) for s in self.stages())

    @property
    def has_denoiser(self) -> bool:
        """Whether any stage trains one, so that there is something to sample."""
        return any(s.trial.objective.diffusion_weight > 0 for s in self.stages())

    @property
    def sampled_objective(self) -> Objective:
        """The objective that the denoiser was last trained with, which says what its output means."""
        objectives = [s.trial.objective for s in self.stages()]
        return next((o for o in reversed(objectives) if o.diffusion_weight > 0), objectives[-1])


def uses_target_encoder(objective: Objective) -> bool:
    """Whether the diffusion loss regresses on the EMA encoder's latents."""
    return objective.diffusion_weight > 0 and objective.target == "ema"


def trained_roles(objective: Objective, latent: Latent) -> set[str]:
    """Roles that the losses reach, were nothing frozen."""
    live = objective.diffusion_weight > 0 and "live" in (objective.target, objective.noised)
    penalised = latent.entropy_weight > 0 or (latent.normaliser == "kl" and latent.kl_weight > 0)
    reached = {
        "encode": live or penalised or objective.reconstruction_weight > 0,
        "denoise": objective.diffusion_weight > 0,
        "decode": objective.reconstruction_weight > 0,
    }
    return {role for role in ROLES if reached[role]}


class Generation(Section):
    """An evaluation of generated images with an extractor trained on the data set itself."""

    sampler: Literal["euler", "heun"] = "heun"
    """Solver of the probability-flow equation."""
    steps: int = Field(25, ge=1, le=10_000)
    """Solver steps; Heun calls the network twice in each but the last."""
    guidance: float = Field(1.0, ge=0, le=100)
    """Classifier-free guidance scale; 1 is no guidance."""
    weights: Literal["ema", "trained"] | Annotated[str, Field(pattern=r"^ema:0?\.\d{1,12}$")] = "ema"
    """Averaged weights, those of the last step, or `ema:DECAY`: the average of one of `training.more_emas`."""
    images: int | Literal["holdout"] = "holdout"
    """`holdout`: as many as there are held-out images, with their labels, so that the real-against-real floor has the same N and class mix. A number: that many, labels balanced over classes."""

    @model_validator(mode="after")
    def _enough(self) -> Generation:
        if isinstance(self.images, int) and not 2 <= self.images <= 10**6:
            raise ValueError(f"images: {self.images} is not between 2 and 1,000,000")
        return self


def decay_of(weights: str, training: Training) -> float | None:
    """Decay of the average that `ema` or `ema:DECAY` means in a trial; None for `trained`."""
    if weights == "trained":
        return None
    return training.weight_ema if weights == "ema" else float(weights.removeprefix("ema:"))
