"""A trial's identity: a hash of what can change its training result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from dsd_lab.specs.fields import SCHEMA_VERSION, Generation, Trial

TRAINING_SECTIONS = ("data", "network", "latent", "objective", "time", "labels", "optimiser", "training")
"""Sections that can change a training result; probes, records and resources cannot."""


def canonical_fields(trial: Trial) -> dict[str, dict[str, Any]]:
    """The training fields of a trial that have an effect, each at its resolved value.

    Fields without effect in a combination are left out, so that two trials that would compute
    the same thing have the same fields: the decay of a target encoder that is not used, the
    mean of a uniform distribution, the whole diffusion objective where its weight is zero.
    """
    fields = {name: getattr(trial, name).model_dump() for name in TRAINING_SECTIONS}
    fields["data"] = {"name": data_name(trial), "revision": trial.data.revision, "holdout": trial.data.holdout}
    if trial.data.source == "idx":
        del fields["data"]["holdout"]  # idx files come with a test split
    del fields["network"]["size"]  # a name for values that are all spelled out
    network, latent, objective, time, optimiser = (
        fields[k] for k in ("network", "latent", "objective", "time", "optimiser")
    )
    unused = (
        ("encode_blocks", "denoise_blocks", "decode_blocks") if network["layout"] == "coupled" else ("shared_blocks",)
    )
    for name in unused:
        del network[name]
    if objective["diffusion_weight"] == 0:
        for name in ("target", "target_decay", "target_warmup", "noised", "output", "loss_space", "weighting", "clamp"):
            del objective[name]
        fields["time"], fields["labels"] = {}, {}
    else:
        if objective["target"] != "ema":
            del objective["target_decay"], objective["target_warmup"]
        if objective["loss_space"] == "velocity":
            del objective["weighting"]
        divides = {("clean", "velocity", None), ("clean", "clean", "velocity"), ("velocity", "clean", "velocity")}
        if (objective["output"], objective["loss_space"], objective.get("weighting")) not in divides:
            del objective["clamp"]
        if time["distribution"] == "uniform":
            del time["mean"], time["std"]
    if objective["reconstruction_weight"] == 0:
        del objective["reconstruction"], latent["decoder_noise"]
    for name, used in (
        ("noise", latent["normaliser"] == "fixed_noise"),
        ("kl_weight", latent["normaliser"] == "kl"),
        ("entropy_floor", latent["entropy_weight"] > 0),
    ):
        if not used:
            del latent[name]
    if optimiser["schedule"] != "tail":
        del optimiser["tail"]
    for section in fields.values():  # -0.0 is 0.0
        section.update({key: value + 0.0 for key, value in section.items() if isinstance(value, float)})
    return fields


def data_name(trial: Trial) -> str:
    """The declared name of the data set: `name`, else the folder's name, else the source."""
    folder = (trial.data.path or "").rstrip("/").rsplit("/", 1)[-1]
    return trial.data.name or folder or trial.data.source


def trial_id(trial: Trial, seed: int) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the canonical non-default training fields and the seed.

    A field that a later version adds with a default leaves every id as it is; changing a default
    is a new `SCHEMA_VERSION`.
    """
    defaults, changed = _defaults(type(trial)), {}
    for section, values in canonical_fields(trial).items():
        for name, value in values.items():
            if value != defaults[section].get(name):
                changed[f"{section}.{name}"] = value
    return _digest({"schema": SCHEMA_VERSION, "seed": seed, "fields": changed})


def evaluation_id(evaluation: Generation) -> str:
    """Eight hexadecimal digits that tell this evaluation's settings from others, made as a trial's id is.

    Settings without effect in a combination are left out, as in `canonical_fields`.
    """
    changed = evaluation.model_dump(exclude_defaults=True)
    unused: tuple[str, ...] = ("steps",) if evaluation.sampler == "dopri5" else ("rtol", "atol")
    if evaluation.guidance == 1:
        unused += ("guidance_interval",)
    if evaluation.images == "holdout":
        unused += ("labels",)
    for name in (*unused, "inception_weights", "reference"):
        changed.pop(name, None)
    if evaluation.metrics is not None:
        changed["metrics"] = evaluation.measured
    if evaluation.reference is not None:
        changed["reference_sha256"] = evaluation.reference_sha256  # None: not there, and nothing is measured
    return _digest({"schema": SCHEMA_VERSION, "generation": changed})[:8]


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _defaults(model: type[Trial]) -> dict[str, dict[str, Any]]:
    trial = model()
    defaults = {name: getattr(trial, name).model_dump() for name in TRAINING_SECTIONS}
    defaults["data"]["name"] = data_name(trial)
    return defaults
