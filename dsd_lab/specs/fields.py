"""Every field of a trial, with its default, unit and range: the sections, and what they must be together.

Where the paper (arXiv 2511.14716) publishes no value, the default is ours and its description
says so. A field is accepted only where something reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from dsd_lab.specs.auxiliary import Augmentation, Auxiliary, misfit
from dsd_lab.specs.data import Data as Data
from dsd_lab.specs.generation import OF_ENCODER as OF_ENCODER
from dsd_lab.specs.generation import OF_IMAGES as OF_IMAGES
from dsd_lab.specs.generation import Generation as Generation
from dsd_lab.specs.method import Labels as Labels
from dsd_lab.specs.method import Latent as Latent
from dsd_lab.specs.method import Network as Network
from dsd_lab.specs.method import Objective as Objective
from dsd_lab.specs.method import Time as Time
from dsd_lab.specs.section import Section as Section
from dsd_lab.specs.training import Optimiser as Optimiser
from dsd_lab.specs.training import Training as Training
from dsd_lab.specs.training import decay_of as decay_of
from dsd_lab.specs.training import resolved_phases, unfit

SCHEMA_VERSION = 1
"""Part of every trial's identity; raised when a default or the meaning of a field changes."""


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
    scale_images: int = Field(128, ge=0, le=10**5)
    """Images (of `images`) on which the diffusion loss' derivative by the latents' scale is measured; 0 leaves it out."""


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
    augmentation: Augmentation = Augmentation()
    auxiliary: Auxiliary = Auxiliary()
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
        self.stages()
        wrong = unfit(self) or misfit(self)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def stages(self) -> list[Stage]:
        """The stretches of training, the first from step 0 on.

        Raises:
            ValueError: phases are not in order or not within the steps, or changes do not fit together.
        """
        return [
            Stage(start, self.model_copy(update={"objective": objective}), frozen)
            for start, objective, frozen in resolved_phases(self.training, self.objective)
        ]

    @property
    def needs_target_encoder(self) -> bool:
        """Whether any stage takes something from an EMA copy of the encoder."""
        return self.auxiliary.needs_target_encoder or any(uses_target_encoder(s.trial.objective) for s in self.stages())

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
