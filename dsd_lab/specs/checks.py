"""Checks between parts of a spec: names in the report, sources of trials, EMAs that evaluations need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsd_lab.errors import BadInput
from dsd_lab.specs.evaluate_list import lacking_checkpoint
from dsd_lab.specs.evaluation import recorded_as
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.sources import named_paths
from dsd_lab.specs.training import lacking_average
from dsd_lab.specs.yaml_document import Document, one_line

if TYPE_CHECKING:
    from dsd_lab.specs.sweep import PlannedTrial, Sweep
    from dsd_lab.specs.trial import Trial

_WHILE_TRAINING = ("train", "latent", "rank_gap", "theory", "interference")
"""First parts of the names of metrics that every trial records in training."""


def check_report(spec: Sweep, document: Document) -> None:
    """Check that the report names only axes, metrics and variants of this spec."""
    tuned, mapped = spec.report.tuned, spec.report.map
    axes = [("tuned", "axis", tuned.axis)] if tuned is not None else []
    axes += [("map", key, getattr(mapped, key)) for key in ("x", "y")] if mapped is not None else []
    for section, key, axis in axes:
        if axis not in spec.grid:
            where = document.where(("report", section, key))
            raise BadInput(
                f"{where}: report.{section}.{key}: {one_line(axis)!r} is no axis of this spec's grid{did_you_mean(axis, list(spec.grid))}"
            )
    for place, (section, key, axis) in enumerate(axes):
        other = next((f"report.{s}.{k}" for s, k, a in axes[:place] if a == axis), None)
        if other is not None:
            raise BadInput(
                f"{document.where(('report', section, key))}: report.{section}.{key}: {one_line(axis)!r} is {other} too; a map takes two axes that are not tuned"
            )
    known = [*dict.fromkeys(recorded_as(m) for e in spec.evaluate for m in e.measured), *_WHILE_TRAINING]
    for section, found in (("tuned", tuned), ("map", mapped)):
        if found is not None and found.by.partition("/")[0] not in known:
            where = document.where(("report", section, "by"))
            raise BadInput(
                f"{where}: report.{section}.by: nothing in this spec measures {one_line(found.by)!r}{did_you_mean(found.by, known)}"
            )
    for key in ("control", "reference"):
        named = getattr(spec.report, key)
        if named is not None and named not in spec.variants and key in spec.report.model_fields_set:
            raise BadInput(
                f"{document.where(('report', key))}: report.{key}: no variant {one_line(named)!r} in this spec{did_you_mean(named, list(spec.variants))}"
            )


def check_sources(trials: list[PlannedTrial], document: Document) -> None:
    """Refuse different folders or files with one name: trials that read them would have the same id."""
    first: dict[str, PlannedTrial] = {}
    for trial in trials:
        other = first.setdefault(trial.id, trial)
        ours, theirs = _sources(trial.fields), _sources(other.fields)
        for section, name in ours.keys() | theirs.keys():
            if ours.get((section, name)) != theirs.get((section, name)):
                where = document.where(("variants", trial.variant, section, name))
                what, cure = (
                    ("folders", "give them different names with data.name")
                    if section == "data"
                    else ("files", "rename one")
                )
                raise BadInput(
                    f"{where}: {section}.{name}: {other.name!r} and {trial.name!r} read different {what} under one name; {cure}"
                )


def _sources(fields: Trial) -> dict[tuple[str, str], str | None]:
    """Folders, files and data sets that a trial reads but that are not part of its id."""
    return {("data", "source"): fields.data.source, ("data", "hub"): fields.data.hub, **named_paths(fields)}


def check_evaluations(spec: Sweep, trials: list[PlannedTrial], document: Document) -> None:
    """Check that every trial has the EMAs that evaluations need, and the label drop that guidance needs."""
    for index, evaluation in enumerate(spec.evaluate):
        for trial in trials:
            average = lacking_average(evaluation.weights, trial.fields.training)
            guidance = lacking_guidance(evaluation.guidance, trial.fields)
            for key, lacking in (
                ("weights", average and f"{average}; add it to training.extra_ema_decays"),
                ("guidance", guidance),
                ("checkpoint", lacking_checkpoint(evaluation, trial.fields)),
            ):
                if lacking is not None:
                    where = document.where(("evaluate", str(index), key))
                    raise BadInput(f"{where}: evaluate.{index}.{key}: {trial.name!r} {lacking}")


def lacking_guidance(guidance: float, fields: Trial) -> str | None:
    """Why a trial cannot be sampled with a guidance scale; None if it can, or has no denoiser."""
    drop = fields.labels.drop
    if guidance == 1 or not fields.has_denoiser or 0 < drop < 1:
        return None
    untrained = '"no class"' if drop == 0 else "classes"
    return (
        f"has labels.drop {drop:g}, which trains no {untrained}; guidance {guidance:g} needs a drop above 0 and below 1"
    )
