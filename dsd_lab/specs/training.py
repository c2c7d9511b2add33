"""Fields of training: optimiser, length, precision, and phases with different objectives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from dsd_lab.specs.base import Section
from dsd_lab.specs.objective import Objective


class Optimiser(Section):
    """AdamW with warm-up and a schedule (all defaults are ours: the paper publishes none)."""

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
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    """After warm-up: constant, cosine to zero, or constant with a linear tail to zero."""
    tail: float = Field(0.3, gt=0, le=1)
    """Fraction of the steps after warm-up in the linear tail of `wsd`."""
    clip: float = Field(1.0, gt=0, le=1e6)
    """Maximum L2 norm of the gradient of each part: encoder, denoiser, decoder (one part under layout `coupled`, which shares blocks), and the heads of each auxiliary loss. `train/clipped/PART` is the fraction of steps in which a part was clipped."""
    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: orthogonalised momentum (Jordan et al. 2024) for the matrices of blocks, AdamW for the rest, at one learning rate."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's Nesterov momentum."""
    encoder_lr_factor: float = Field(1.0, gt=0, le=100)
    """Factor of the learning rate for the encoder's weights (`modular`, `separate`). LDM-is-AE's encoder starts at 0.1, divided by 3 every 50 epochs, and is 0 from epoch 200 (arXiv 2609.37080)."""


def _changes(section: type[Section]) -> type[Section]:
    """A section in which every field is optional, for overrides; values are checked as in the section."""
    parts: dict[str, Any] = {}
    for name, info in section.model_fields.items():
        kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        parts[name] = (kind | None, Field(None, description=info.description))
    return create_model(f"{section.__name__}Changes", __base__=Section, **parts)


ObjectiveChanges: Any = _changes(Objective)


class Phase(Section):
    """Changes from a given step on."""

    start: int | float = Field(ge=0, le=10**9)
    """First step of the phase: a step number from 0, or, with a decimal point and below 1, a fraction of `steps`."""
    objective: ObjectiveChanges | None = None
    """Fields of the objective that change."""
    frozen: list[Literal["encode", "denoise", "decode"]] = []
    """Roles whose weights are frozen in this phase."""


class Training(Section):
    """Length, batches and precision of training."""

    steps: int = Field(1000, ge=1, le=10**9)
    """Optimiser steps."""
    batch_size: int = Field(64, ge=1, le=10**6)
    """Images per optimiser step, over all processes (the global batch)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products of the blocks are in bfloat16. Weights, latents, normaliser, the maps between latents and tokens, and losses stay in float32."""
    compile: bool = False
    """Compile the network's blocks with torch. The first step of a process then takes 10 to 60 seconds more, or a few with the home folder's cache. On a CPU 14 to 24 % more images per second in bfloat16, 3 to 6 % in float32; not measured on a GPU."""
    activation_checkpointing: bool = False
    """Recompute the activations of blocks in the backward pass instead of storing them: the same numbers with much less memory and about a third more computation."""
    weight_ema: float = Field(0.99, ge=0, lt=1)
    """Decay per step of the averaged weights, which are sampled from (ours)."""
    extra_ema_decays: list[Annotated[float, Field(ge=0, lt=1)]] = Field([], max_length=8)
    """Decays of further averages, for evaluations with `weights: ema:DECAY`."""
    grad_accum_steps: int = Field(1, ge=1, le=10**6)
    """Parts into which a batch is split; their gradients are summed before the optimiser step."""
    noise_draws: int = Field(1, ge=1, le=64)
    """Draws k of noise and time per image for the diffusion loss, which is their mean; the encoder runs once. UNITE (arXiv 2603.22283) sums them: multiply `diffusion_weight` by k for the same loss."""
    phases: list[Phase] = Field([], max_length=16)
    """Changes of the objective during training, in order: staged training, and interventions. Each phase changes fields of the previous one."""


def decay_of(weights: str, training: Training) -> float | None:
    """Decay of the average `ema` or `ema:DECAY` of a trial; None for `trained`."""
    if weights == "trained":
        return None
    return training.weight_ema if weights == "ema" else float(weights.removeprefix("ema:"))


def lacking_average(weights: str, training: Training) -> str | None:
    """Message about an average that an evaluation needs and a trial does not have; None if it has it."""
    decay, kept = decay_of(weights, training), [training.weight_ema, *training.extra_ema_decays]
    if decay is None or decay in kept:
        return None
    return f"keeps no average of decay {decay:g}, only {', '.join(f'{k:g}' for k in kept)}"
