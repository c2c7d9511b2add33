"""Fields of training: the optimiser, length and arithmetic, and phases that change the objective on the way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from dsd_lab.specs.base import Section
from dsd_lab.specs.objective import Objective


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
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    """After warm-up: constant, cosine to zero, or constant with a linear tail to zero."""
    tail: float = Field(0.3, gt=0, le=1)
    """Share of the steps that the linear tail takes."""
    clip: float = Field(1.0, gt=0, le=1e6)
    """Largest norm of the gradient of each part that shares no weight with another: encoder, denoiser, decoder (all three are one part under layout `coupled`, whose blocks they share), and the heads of each auxiliary loss. `train/clipped/PART` is the share of steps in which a part was clipped."""
    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: orthogonalised momentum (Jordan et al. 2024) for the matrices of blocks, AdamW for the rest, at one learning rate."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's Nesterov momentum."""
    encoder_lr_factor: float = Field(1.0, gt=0, le=100)
    """Learning rate of the encoder's own weights, as a multiple of the others' (layouts with an encoder of its own). LDM-is-AE's encoder starts at 0.1, divided by 3 every 50 epochs, 0 from epoch 200 (arXiv 2609.37080)."""


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
    """`bf16` runs the matrix products of the blocks in bfloat16; weights, latents, normaliser, the maps between latents and tokens, and losses stay in float32."""
    compile: bool = False
    """Have torch compile the network's blocks: the first step of a process waits for it (10 to 60 seconds, or a few from the home folder's cache). On a CPU 14 to 24 % more images a second in bfloat16, 3 to 6 % in float32; not measured on a GPU."""
    activation_checkpointing: bool = False
    """Keep only what enters a block for the backward pass and compute the block again there (activation checkpointing): the same numbers in much less memory, for about a third more computing."""
    weight_ema: float = Field(0.99, ge=0, lt=1)
    """Decay a step of the averaged weights that are sampled from (ours)."""
    extra_ema_decays: list[Annotated[float, Field(ge=0, lt=1)]] = Field([], max_length=8)
    """Further decays whose averages are kept beside it, for evaluations with `weights: ema:DECAY`."""
    grad_accum_steps: int = Field(1, ge=1, le=10**6)
    """Parts that the batch is cut into; gradients are summed over them before the optimiser's step."""
    noise_draws: int = Field(1, ge=1, le=64)
    """Draws of noise and time an image for the diffusion loss, which is their mean; the encoder runs once (UNITE's k, arXiv 2603.22283, which sums them: multiply `diffusion_weight` by k)."""
    phases: list[Phase] = Field([], max_length=16)
    """Changes of the objective in mid-training, in order: staged training, and interventions. Each lays its changes on the phase before it."""


def decay_of(weights: str, training: Training) -> float | None:
    """Decay of the average that `ema` or `ema:DECAY` means in a trial; None for `trained`."""
    if weights == "trained":
        return None
    return training.weight_ema if weights == "ema" else float(weights.removeprefix("ema:"))


def lacking_average(weights: str, training: Training) -> str | None:
    """What an evaluation asks for that a trial does not keep, in words; None where it keeps it."""
    decay, kept = decay_of(weights, training), [training.weight_ema, *training.extra_ema_decays]
    if decay is None or decay in kept:
        return None
    return f"keeps no average of decay {decay:g}, only {', '.join(f'{k:g}' for k in kept)}"
