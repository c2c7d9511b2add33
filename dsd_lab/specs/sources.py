"""Folders and weight files that a trial reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsd_lab.specs.auxiliary import EMA, NO_FILES

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Trial


_PATHS = (("data", "path"), ("objective", "perceptual_weights"), ("auxiliary", "alignment_weights"))
"""Fields of a trial that name a folder or a file, by section and field."""
_PATHS_OF_EVALUATIONS = ("reference", "inception_weights", "dinov2_weights")


class NamedBackbone(NamedTuple):
    """A timm model that a trial uses, and the keys that name it."""

    key: str
    name: str
    weights_key: str
    weights: str
    layers_key: str

    @property
    def from_file(self) -> bool:
        """Whether its weights are in a file that the spec names."""
        return self.weights not in NO_FILES


def named_backbones(trial: Trial) -> dict[str, NamedBackbone]:
    """The timm models of a trial, by loss."""
    found = {}
    auxiliary, objective = trial.auxiliary, trial.objective
    if objective.perceptual_weight > 0 or objective.anchor_perceptual_weight > 0:
        found["perceptual"] = NamedBackbone(
            "objective.perceptual_backbone",
            str(objective.perceptual_backbone),
            "objective.perceptual_weights",
            str(objective.perceptual_weights),
            "objective.perceptual_backbone",
        )
    if auxiliary.alignment > 0 and auxiliary.alignment_to != EMA:
        found["alignment"] = NamedBackbone(
            "auxiliary.alignment_to",
            auxiliary.alignment_to,
            "auxiliary.alignment_weights",
            str(auxiliary.alignment_weights),
            "auxiliary.alignment_target_layers",
        )
    return found


def named_paths(trial: Trial) -> dict[tuple[str, str], str]:
    """Folders and files that a trial reads, by section and field."""
    found = {} if trial.data.path is None else {("data", "path"): trial.data.path}
    for named in named_backbones(trial).values():
        if named.from_file:
            section, name = named.weights_key.split(".")
            found[section, name] = named.weights
    return found


def with_paths_from(folder: Path, value: Any, at: tuple[str, ...] = ()) -> Any:
    """A part of a spec with absolute paths.

    Args:
        folder: absolute base of relative paths.
        value: a whole spec, or the value at a key path.
        at: that key path; it may contain a grid axis such as `data.path`.
    """
    if isinstance(value, dict):
        return {key: with_paths_from(folder, inner, (*at, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_paths_from(folder, inner, at) for inner in value]
    parts = tuple(part for part in ".".join(at).split(".") if not part.isdecimal())
    names_file = parts[-2:] in _PATHS or ("evaluate" in parts[:-1] and parts[-1] in _PATHS_OF_EVALUATIONS)
    if not names_file or not isinstance(value, str) or not value or value in NO_FILES or value.startswith("~"):
        return value
    return str(folder / value)
