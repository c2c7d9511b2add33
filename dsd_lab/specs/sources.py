"""Folders and weight files that a trial reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dsd_lab.specs.auxiliary import EMA, NO_FILES

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Trial


class NamedBackbone(NamedTuple):
    """A timm model that a trial names, and the keys that say so."""

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
    """The timm models that a trial's losses use, by the loss."""
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
