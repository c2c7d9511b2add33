"""All fields of a trial, and the rules between its sections. A field is accepted only where it has an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, model_validator

from dsd_lab.specs.auxiliary import EMA, Augmentation, Auxiliary
from dsd_lab.specs.base import Section as Section
from dsd_lab.specs.data import Data as Data
from dsd_lab.specs.evaluation import OF_ENCODER as OF_ENCODER
from dsd_lab.specs.evaluation import OF_IMAGES as OF_IMAGES
from dsd_lab.specs.evaluation import Generation as Generation
from dsd_lab.specs.network import Network as Network
from dsd_lab.specs.objective import Labels as Labels
from dsd_lab.specs.objective import Latent as Latent
from dsd_lab.specs.objective import Objective as Objective
from dsd_lab.specs.objective import Time as Time
from dsd_lab.specs.observation import Observation, Probe
from dsd_lab.specs.part_fields import is_foreign, kinds_in
from dsd_lab.specs.registry import trait
from dsd_lab.specs.resources import Resources as Resources
from dsd_lab.specs.training import Optimiser as Optimiser
from dsd_lab.specs.training import Training as Training
from dsd_lab.specs.training import decay_of as decay_of

SCHEMA_VERSION = 2
"""Part of every trial's identity; raised when a default or the meaning of a field changes.

Version 2 clips gradients per part, and renames five fields (`specs/renamed.py`).
"""


@dataclass(frozen=True)
class Stage:
    """A range of training steps with one objective."""

    start: int
    trial: Trial
    """The trial with the objective of this stage."""
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
        part = training.batch_size // training.grad_accum_steps
        if self.resources.team > part:
            raise ValueError(
                f"resources.processes: {self.resources.team} processes share {part} images (training.batch_size over training.grad_accum_steps); each needs one"
            )
        wrong = unfit(self) or misfit(self) or misfit_of_latents(self)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    def stages(self) -> list[Stage]:
        """The stages of training; the first starts at step 0.

        Raises:
            ValueError: phases are not in order or not within the steps, or a changed objective is not valid.
        """
        return [
            Stage(start, self.model_copy(update={"objective": objective}), frozen)
            for start, objective, frozen in resolved_phases(self.training, self.objective)
        ]

    @property
    def needs_target_encoder(self) -> bool:
        """Whether any stage uses an EMA copy of the encoder."""
        return self.auxiliary.needs_target_encoder or any(uses_target_encoder(s.trial.objective) for s in self.stages())

    @property
    def has_denoiser(self) -> bool:
        """Whether any stage trains a denoiser, so that the trial can be sampled."""
        return any(s.trial.objective.diffusion_weight > 0 for s in self.stages())

    @property
    def sampled_objective(self) -> Objective:
        """The last objective that trained the denoiser; it says what the denoiser predicts."""
        return self.sampled_at(self.training.steps)

    def sampled_at(self, step: int) -> Objective:
        """The same for the weights after so many steps (1 or more)."""
        objectives = [s.trial.objective for s in self.stages() if s.start < step]
        return next((o for o in reversed(objectives) if o.diffusion_weight > 0), objectives[-1])


def uses_target_encoder(objective: Objective) -> bool:
    """Whether the diffusion loss regresses on the EMA encoder's latents."""
    needs = objective.target == "ema" or trait("target", objective.target, "needs_ema", False)
    return bool(objective.diffusion_weight > 0 and needs)


def unfit_images(trial: Trial, shape: Sequence[int]) -> str:
    """Why a trial cannot train on images of this shape (C, H, W), and what to write; empty if it can."""
    _, height, width = shape
    size, name = trial.network.image_size, trial.data.path or trial.data.hub or trial.data.source
    if height != width:
        return f"the images of {name} are {height} x {width} pixels and not square; `data.crop: centre` crops them to their central square"
    if size != height:
        return f"network.image_size is {size}, but the images of {name} are {height} pixels per side; write `network.image_size: {height}`, or `data.size: {size}`"
    return ""


def resolved_phases(training: Training, objective: Objective) -> list[tuple[int, Objective, frozenset[str]]]:
    """First step, objective and frozen roles of every stage of training; the first starts at step 0.

    Raises:
        ValueError: phases are not in order or not within the steps, or a changed objective is not valid.
    """
    steps, found = training.steps, [(0, objective, frozenset[str]())]
    for index, phase in enumerate(training.phases):
        where = f"training.phases.{index}"
        start = round(phase.start * steps) if isinstance(phase.start, float) and phase.start < 1 else phase.start
        if start != int(start) or not start < steps:
            raise ValueError(f"{where}.start: {phase.start} is neither a step before {steps} nor a fraction below 1")
        if index and start <= found[-1][0]:
            raise ValueError(
                f"{where}.start: step {start:g} is not after step {found[-1][0]}, where the phase before starts"
            )
        before = found[-1][1]
        changes = {} if phase.objective is None else phase.objective.model_dump(exclude_none=True)
        for name in ("perceptual_weight", "anchor_perceptual_weight"):
            if changes.get(name, 0) > 0 and getattr(objective, name) == 0:
                raise ValueError(f"{where}.objective.{name}: a phase can switch it off, not on")
        try:
            changed = Objective.model_validate(_laid_over(before, changes))
        except ValidationError as error:
            raise ValueError(f"{where}.objective: {error.errors()[0]['msg']}") from None
        stage = int(start), changed, frozenset(phase.frozen)
        found = [stage] if start == 0 else [*found, stage]
    return found


def _laid_over(before: Objective, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields after a phase's changes; options of replaced parts are dropped."""
    fields = before.model_dump() | changes
    named = {fields[name] for name in kinds_in(Objective)}
    options = {name: given for name, given in before.options.items() if name in named}
    return fields | {"options": options | changes.get("options", {})}


def live_target(objective: Objective) -> bool:
    """Whether the diffusion loss's gradient reaches the encoder through the target; for a plug-in's, its trait `live`."""
    return objective.target == "live" or bool(
        is_foreign("target", objective.target) and trait("target", objective.target, "live", True)
    )


def reaches_encoder(objective: Objective) -> bool:
    """Whether the diffusion loss trains the encoder: its gradient passes z_t or the target, and is not scaled to 0."""
    live = objective.noised == "live" or live_target(objective)
    return objective.diffusion_weight > 0 and live and objective.encoder_gradient > 0


def unfit(trial: Trial) -> str | None:
    """Conflict between `training` and other sections, beginning with the key; or None."""
    training, coupled = trial.training, trial.network.layout == "coupled"
    if training.batch_size % training.grad_accum_steps:
        return (
            f"training.grad_accum_steps: {training.grad_accum_steps} does not divide batch_size {training.batch_size}"
        )
    whole = {
        "batchnorm": trial.latent.normaliser == "batchnorm",
        "the entropy bonus": trial.latent.entropy_weight > 0,
        "a regulariser": any(weight > 0 for weight in trial.latent.regularisers.values()),
        "balance by gradient norms": any(s.trial.objective.balance != "none" for s in trial.stages()),
    }
    for name, used in whole.items():
        if used and training.grad_accum_steps > 1:
            return f"training.grad_accum_steps: {name} is taken over a whole batch, which parts do not give"
    if coupled and trial.optimiser.encoder_lr_factor != 1:
        return "optimiser.encoder_lr_factor: under layout 'coupled' the encoder has no blocks of its own"
    if coupled and any(phase.frozen for phase in training.phases):
        return "training.phases: under layout 'coupled' all roles share their blocks, so none can be frozen"
    stages = trial.stages()
    for index, stage in enumerate(stages[len(stages) - len(training.phases) :]):
        if not trained_roles(stage.trial) - stage.frozen:
            return f"training.phases.{index}.frozen: no loss of this phase reaches a role that is not frozen, so nothing would be trained"
    if training.noise_draws > 1 and (loss := trial.auxiliary.extra_reads("denoise")) is not None:
        return f"auxiliary.extra.{loss}: reads the denoiser's tokens, which it can with training.noise_draws 1 alone"
    if trial.auxiliary.alignment > 0 and trial.auxiliary.alignment_from == "denoise":
        if training.noise_draws > 1:
            return "auxiliary.alignment_from: the denoiser's tokens are aligned with noise_draws 1 alone"
        if len({(s.trial.objective.noised, s.trial.objective.diffusion_weight > 0) for s in trial.stages()}) > 1:
            return "auxiliary.alignment_from: with the denoiser's tokens, phases change neither noised nor whether there is a diffusion loss"
    return None


def trained_roles(trial: Trial) -> set[str]:
    """Roles that receive gradients from the losses of a stage, ignoring frozen roles."""
    objective, latent, auxiliary = trial.objective, trial.latent, trial.auxiliary
    penalised = latent.entropy_weight > 0 or (latent.normaliser == "kl" and latent.kl_weight > 0)
    penalised = penalised or any(weight > 0 for weight in latent.regularisers.values())
    beside = auxiliary.alignment > 0 or auxiliary.representation > 0 or auxiliary.classification > 0
    beside = beside or any(weight > 0 for weight in auxiliary.extra.values())
    decodes = objective.reconstruction_weight > 0 or objective.perceptual_weight > 0
    anchored = objective.anchor_weight > 0 or objective.anchor_perceptual_weight > 0
    reached = {
        "encode": reaches_encoder(objective) or penalised or decodes or beside,
        "denoise": objective.diffusion_weight > 0,
    }
    return {role for role, used in {**reached, "decode": decodes or anchored}.items() if used}


def blocks_of(trial: Trial, role: str) -> int:
    """Number of blocks that a role uses."""
    shared = trial.network.layout == "coupled"
    return int(getattr(trial.network, "shared_blocks" if shared else f"{role}_blocks"))


def misfit(trial: Trial) -> str | None:
    """Conflict between `augmentation` or `auxiliary` and other sections, beginning with the key; or None."""
    size, crop, spec = trial.network.image_size, trial.augmentation.crop, trial.auxiliary
    if size is not None and crop >= size:
        return f"augmentation.crop: {crop} is not below network.image_size ({size})"
    if spec.alignment_encoder > 0 and (
        spec.alignment == 0 or spec.alignment_from != "denoise" or spec.alignment_noised != "detached"
    ):
        return "auxiliary.alignment_encoder: needs an alignment above 0, alignment_from: denoise and alignment_noised: detached"
    if spec.alignment == 0:
        return None
    if len(spec.alignment_layers) != len(spec.alignment_target_layers):
        return f"auxiliary.alignment_target_layers: {len(spec.alignment_target_layers)} layers for the {len(spec.alignment_layers)} of alignment_layers; each needs one"
    if spec.alignment_from == "denoise" and trial.objective.diffusion_weight == 0:
        return "auxiliary.alignment_from: the denoiser is not trained where objective.diffusion_weight is 0"
    if spec.alignment_to != EMA and spec.alignment_weights is None:
        return f"auxiliary.alignment_weights: {spec.alignment_to} needs a file, `pretrained` or `random`"
    sides = [("alignment_layers", spec.alignment_from)]
    sides += [("alignment_target_layers", "encode")] if spec.alignment_to == EMA else []
    for name, role in sides:
        count = blocks_of(trial, role)
        for layer in getattr(spec, name):
            if not -count <= layer < count:
                return f"auxiliary.{name}: {layer} is no block of {role}, which has {count} ({-count} to {count - 1})"
    return None


def misfit_of_latents(trial: Trial) -> str | None:
    """Conflict between `latent` and objectives or phases, beginning with the key; or None."""
    latent, stages = trial.latent, trial.stages()
    if latent.decoded == "raw" and any(s.trial.objective.balance != "none" for s in stages):
        return "objective.balance: the reconstruction has no gradient at the latents where latent.decoded is raw"
    if not latent.normalise_prediction:
        return None
    if any(s.trial.objective.diffusion_weight > 0 and s.trial.objective.output != "clean" for s in stages):
        return "latent.normalise_prediction: only a clean prediction is a latent; objective.output is velocity"
    if latent.normaliser == "layernorm_affine" and any(len(s.frozen & {"encode", "denoise"}) == 1 for s in stages):
        return "training.phases: with latent.normalise_prediction encoder and denoiser share the normaliser's weights; freeze both or neither"
    return None
