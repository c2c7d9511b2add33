"""A trial's identity: a hash of everything that can change its training result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from dsd_lab.specs.auxiliary import EMA
from dsd_lab.specs.objective import LINEAR
from dsd_lab.specs.part_fields import is_foreign
from dsd_lab.specs.part_identity import digest_of, foreign_parts, settle_parts
from dsd_lab.specs.trial import (
    SCHEMA_VERSION,
    Generation,
    Network,
    Objective,
    Trial,
    blocks_of,
)

TRAINING_SECTIONS = (
    "data",
    "network",
    "latent",
    "objective",
    "time",
    "labels",
    "augmentation",
    "auxiliary",
    "optimiser",
    "training",
)
"""Sections that can change a training result; `probe`, `observation` and `resources` cannot."""


def canonical_fields(trial: Trial, recorded: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The training fields of a trial that have an effect, at their resolved values.

    Fields without effect in a combination are left out, so that trials that compute the same have the same fields.
    Examples: the decay of an unused target encoder, the mean of a uniform distribution, the whole diffusion objective
    if its weight is zero. A field is left out only for values that this module names; with any other value, such as a
    new normaliser, every field counts.

    The section `plugins` has the digests of the plug-ins' parts that are used; without such parts it is absent.

    Args:
        trial: the trial.
        recorded: `kind/name` -> digest, from a record whose plug-ins are not loaded; None: digests of loaded plug-ins.

    Raises:
        BadInput: a plug-in is not loaded.
    """
    fields = {name: getattr(trial, name).model_dump() for name in TRAINING_SECTIONS}
    data = fields["data"] | {"name": data_name(trial)}
    for name in ("source", "path", "hub", "memory", "workers"):  # location and storage; `name` identifies the images
        del data[name]
    if trial.data.source == "idx":
        del data["holdout"]  # idx files have a test split
    fields["data"] = data
    del fields["network"]["size"]  # an abbreviation of the other fields
    network, latent, time, optimiser = (fields[k] for k in ("network", "latent", "time", "optimiser"))
    if network["block"] == Network.model_fields["block"].default:
        del network["block"]  # as in the records of before there was a choice
    own = ("encode_blocks", "denoise_blocks", "decode_blocks")
    without = {"coupled": own, "modular": ("shared_blocks",), "separate": ("shared_blocks",)}
    for name in without.get(network["layout"], ()):
        del network[name]
    stages = trial.stages()
    objectives = [s.trial.objective for s in stages]
    # A target encoder is updated from the first step, at each phase's decay, until the last phase that uses it.
    used = [_may_use_target(o) or trial.auxiliary.needs_target_encoder for o in objectives]
    last = max((i for i, kept in enumerate(used) if kept), default=-1)
    canonical = [_objective(stage.trial, i <= last) for i, stage in enumerate(stages)]
    fields["objective"] = canonical[0]
    fields["training"]["phases"], before = [], (canonical[0], frozenset[str]())
    for stage, objective in zip(stages, canonical, strict=True):
        if (objective, stage.frozen) != before:
            changed = {k: v for k, v in objective.items() if v != Objective.model_fields[k].default}
            phase = {"start": stage.start, "objective": changed, "frozen": sorted(stage.frozen)}
            fields["training"]["phases"].append(phase)
        before = (objective, stage.frozen)
    fields["training"]["extra_ema_decays"] = sorted(
        set(fields["training"]["extra_ema_decays"]) - {trial.training.weight_ema}
    )
    if not trial.has_denoiser:
        fields["time"], fields["labels"] = {}, {}
    elif time["distribution"] == "uniform":
        del time["mean"], time["std"]
    if not trial.has_denoiser or trial.training.noise_draws == 1:  # so that a control differs only by its objective
        del fields["training"]["noise_draws"]
    if all(o.reconstruction_weight == o.perceptual_weight == 0 for o in objectives):
        del latent["decoder_noise"]
    if latent["entropy_weight"] == 0:
        del latent["entropy_floor"]
    for name in _NOT_READ.get(latent["normaliser"], ()):
        del latent[name]
    fields["auxiliary"] = _auxiliary(trial)
    if optimiser["schedule"] in ("constant", "cosine"):
        del optimiser["tail"]
    if optimiser["kind"] == "adamw":
        del optimiser["momentum"]
    for weighted, name in ((latent, "regularisers"), (fields["auxiliary"], "extra")):
        weighted[name] = {key: weight for key, weight in weighted[name].items() if weight > 0}
        if not weighted[name]:
            del weighted[name]
    parts = {("data_source", trial.data.source)} if is_foreign("data_source", trial.data.source) else set()
    for name in ("network", "latent", "auxiliary", "time", "data"):
        parts |= settle_parts(type(getattr(trial, name)), fields[name], {part for _, part in parts})
    for objective in canonical:
        parts |= foreign_parts(Objective, objective)
    if parts:
        fields["plugins"] = {f"{kind}/{part}": digest_of(kind, part, recorded) for kind, part in sorted(parts)}
    for section in fields.values():  # -0.0 is 0.0
        section.update({key: value + 0.0 for key, value in section.items() if isinstance(value, float)})
    return fields


_NOTHING_DIVIDED = {("velocity", "velocity", None), ("velocity", "clean", "none"), ("clean", "clean", "none")}
"""(output, loss space, weighting (None: no effect)) of losses that do not use `clamp`."""
_NOT_READ: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("none", "layernorm", "layernorm_affine", "batchnorm", "rmsnorm", "tanh"), ("noise", "kl_weight")
)
_NOT_READ |= {"fixed_noise": ("kl_weight",), "kl": ("noise",)}
"""Fields of `latent` that a normaliser does not read."""


def _may_use_target(objective: Objective) -> bool:
    return objective.diffusion_weight > 0 and objective.target not in ("live", "stop_gradient")


def _objective(trial: Trial, target_kept: bool) -> dict[str, Any]:
    """The fields of an objective that have an effect; `target_kept`: a target encoder is updated in this stage."""
    spec, objective = trial.objective, trial.objective.model_dump()
    if spec.diffusion_weight == 0:
        for name in ("target", "path", "noised", "output", "loss_space", "weighting", "clamp", "encoder_gradient"):
            del objective[name]
    else:
        if spec.loss_space == "velocity":
            del objective["weighting"]
        if spec.path == LINEAR:
            del objective["path"]  # as in the records of before there was a choice
            if (spec.output, spec.loss_space, objective.get("weighting")) in _NOTHING_DIVIDED:
                del objective["clamp"]
    if not _may_reach_encoder(spec):
        objective.pop("encoder_gradient", None)
    if "encoder_gradient" not in objective or spec.encoder_gradient == 0 or spec.encoder_gradient_warmup == 0:
        del objective["encoder_gradient_warmup"], objective["encoder_gradient_ramp"]
    if not target_kept:
        del objective["target_decay"], objective["target_warmup"]
    if spec.reconstruction_weight == spec.anchor_weight == 0:
        del objective["reconstruction"]
    if spec.perceptual_weight == spec.anchor_perceptual_weight == 0:
        del objective["perceptual_backbone"], objective["perceptual_weights"]
    else:
        objective["perceptual_weights"] = _file_name(objective["perceptual_weights"])
    if spec.reconstruction_weight == 0 or not _meets_reconstruction(trial):
        del objective["balance"]
    settle_parts(Objective, objective)
    return objective


def _auxiliary(trial: Trial) -> dict[str, Any]:
    spec, values = trial.auxiliary, trial.auxiliary.model_dump()
    to_ema, denoises = spec.alignment_to == EMA, spec.alignment_from != "encode"
    for name, used in (
        ("alignment_from", spec.alignment > 0),
        ("alignment_layers", spec.alignment > 0),
        ("alignment_to", spec.alignment > 0),
        ("alignment_target_layers", spec.alignment > 0),
        ("alignment_weights", spec.alignment > 0 and not to_ema),
        ("alignment_noised", spec.alignment > 0 and denoises),
        ("classification_from", spec.classification > 0),
        ("head_width", spec.alignment > 0 or spec.representation > 0),
    ):
        if not used:
            del values[name]
    if spec.alignment > 0:  # indices from the end: the last block is -1 at any depth
        sides = [("alignment_layers", spec.alignment_from)] + [("alignment_target_layers", "encode")] * to_ema
        for name, role in sides:
            count = blocks_of(trial, role)
            values[name] = [layer - count if layer >= 0 else layer for layer in values[name]]
    if "alignment_weights" in values:
        values["alignment_weights"] = _file_name(values["alignment_weights"])
    return values


_DETACHED = ("stop_gradient", "ema")
"""Targets without gradient."""


def _may_reach_encoder(objective: Objective) -> bool:
    """`reaches_encoder` for any factor, and for a plug-in's target whatever its trait says: ids must not depend on what is loaded."""
    return objective.diffusion_weight > 0 and (objective.noised != "detached" or objective.target not in _DETACHED)


def _meets_reconstruction(trial: Trial) -> bool:
    """Whether any loss that can be balanced has a gradient at the latents."""
    objective, auxiliary = trial.objective, trial.auxiliary
    return (
        _may_reach_encoder(objective)
        or any(weight > 0 for weight in auxiliary.extra.values())
        or objective.perceptual_weight > 0
        or (auxiliary.classification > 0 and auxiliary.classification_from != "encode")
        or (
            auxiliary.alignment > 0
            and not (auxiliary.alignment_from == "encode" or auxiliary.alignment_noised == "detached")
        )
    )


def _file_name(weights: str) -> str:
    """The file name of weights, or `pretrained` or `random`: identifies weights in any folder."""
    return weights.rsplit("/", 1)[-1]


def data_name(trial: Trial) -> str:
    """Name of the data set: `name`, else the name on the Hub, else the folder's name, else the source."""
    folder = (trial.data.path or "").rstrip("/").rsplit("/", 1)[-1]
    return trial.data.name or trial.data.hub or folder or trial.data.source


def trial_id(trial: Trial, seed: int, recorded: Mapping[str, str] | None = None) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the canonical non-default training fields and the seed.

    A new field with a default changes no id; a changed default needs a new `SCHEMA_VERSION`. `recorded`: as in
    `canonical_fields`.
    """
    return trial_ids(trial, [seed], recorded)[0]


def trial_ids(trial: Trial, seeds: Sequence[int], recorded: Mapping[str, str] | None = None) -> list[str]:
    """`trial_id` of every seed."""
    return canonical_ids(canonical_fields(trial, recorded), seeds, type(trial))


def canonical_ids(canonical: dict[str, dict[str, Any]], seeds: Sequence[int], model: type[Trial] = Trial) -> list[str]:
    """`trial_id` of every seed, from a trial's canonical fields as a manifest records them."""
    defaults, changed = _defaults(model), {}
    for section, values in canonical.items():
        for name, value in values.items():
            if value != defaults.get(section, {}).get(name):
                changed[f"{section}.{name}"] = value
    return [_digest({"schema": SCHEMA_VERSION, "seed": seed, "fields": changed}) for seed in seeds]


_NOT_OF_SAMPLING = ("protocol", "extractor", "inception_weights", "dinov2_weights", "reference", "reference_sha256")


def sampling_settings(evaluation: Generation) -> dict[str, Any]:
    """The settings that change an evaluation's samples, with the digests of a plug-in's sampler."""
    found = evaluation.model_dump(mode="json", exclude={*_NOT_OF_SAMPLING, "metrics"})
    own = is_foreign("sampler", evaluation.sampler)
    return found | ({"plugin": digest_of("sampler", evaluation.sampler, None)} if own else {})


def evaluation_id(evaluation: Generation) -> str:
    """Eight hexadecimal digits of a hash of an evaluation's settings, without those that have no effect."""
    changed = evaluation.model_dump(exclude_defaults=True)
    unused: tuple[str, ...] = ("steps",) if evaluation.sampler == "dopri5" else ()
    unused += ("rtol", "atol") if evaluation.sampler in ("euler", "heun", "sde") else ()
    if evaluation.guidance == 1:
        unused += ("guidance_interval",)
    if evaluation.guidance == 1 or evaluation.guidance_interval is None:
        unused += ("guidance_ends",)
    if evaluation.images == "holdout":
        unused += ("labels",)
    for name in (*unused, "protocol", "inception_weights", "dinov2_weights", "reference"):
        changed.pop(name, None)
    if evaluation.metrics is not None:
        changed["metrics"] = evaluation.measured
    if evaluation.reference is not None:
        changed["reference_sha256"] = evaluation.reference_sha256  # None: the file is missing, nothing is measured
    parts = [("sampler", evaluation.sampler), *(("sample_metric", metric) for metric in evaluation.measured)]
    if used := {f"{kind}/{name}": digest_of(kind, name, None) for kind, name in parts if is_foreign(kind, name)}:
        changed["plugins"] = used
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
