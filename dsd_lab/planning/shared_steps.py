"""The number of first steps that two trials share, so that one can start from the other's checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dsd_lab.core.training.schedule import learning_rate
from dsd_lab.errors import BadInput
from dsd_lab.home.beginnings import trials_with_key
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial
from dsd_lab.training_code import is_current

_BY_TIME = {"training": ("steps", "phases"), "optimiser": ("schedule", "tail", "warmup_steps")}
"""Fields that may differ between trials that share first steps."""


def beginning_key(trial: Trial, seed: int) -> str:
    """Key of everything that must be equal for trials to share first steps."""
    canonical = canonical_fields(trial)
    fixed: dict[str, Any] = {
        section: {key: value for key, value in fields.items() if key not in _BY_TIME.get(section, ())}
        for section, fields in canonical.items()
    }
    fixed["seed"] = seed
    fixed["target_encoder"] = trial.needs_target_encoder
    # Records are copied too.
    fixed["probe"], fixed["observation"] = trial.probe.model_dump(), trial.observation.model_dump()
    for name in ("checkpoints_kept", "keep_every"):
        fixed["observation"].pop(name, None)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def shared_steps(one: Trial, other: Trial) -> int:
    """Number of first steps that two trials of one `beginning_key` train bit-identically.

    A cosine schedule depends on `training.steps` from the first step, so different lengths share nothing.
    """
    shared: int = min(one.training.steps, other.training.steps)
    phases = [canonical_fields(trial)["training"]["phases"] for trial in (one, other)]
    while phases[0] and phases[1] and phases[0][0] == phases[1][0]:
        del phases[0][0], phases[1][0]
    shared = min([shared, *(rest[0]["start"] for rest in phases if rest)])
    rates = [(trial.optimiser, trial.training.steps) for trial in (one, other)]
    if rates[0] == rates[1] or (rates[0][0] == rates[1][0] and one.optimiser.schedule == "constant"):
        return shared
    for step in range(shared):
        if learning_rate(rates[0][0], step, rates[0][1]) != learning_rate(rates[1][0], step, rates[1][1]):
            return step
    return shared


def takes_over(trial: Trial, other: Trial, step: int) -> bool:
    """Whether another trial's checkpoint at a step, records included, is one that this trial would write itself.

    At its last step a trial always probes, draws and saves; such a checkpoint counts only if this trial does so too.
    """
    watch = trial.observation
    if step % watch.checkpoint_every or not 0 < step <= shared_steps(trial, other):
        return False
    if step < other.training.steps or step == trial.training.steps:
        return step < trial.training.steps or step == other.training.steps
    return all(step % every == 0 for every in (trial.probe.every, watch.images_every, watch.log_every))


@dataclass(frozen=True)
class Beginning:
    """A checkpoint of another trial from which a trial can start."""

    folder: TrialFolder
    step: int


def find_beginning(home: Home, trial: PlannedTrial) -> Beginning | None:
    """The latest checkpoint of another trial in the home folder that a trial can start from; not verified."""
    best: Beginning | None = None
    for other in trials_with_key(home, beginning_key(trial.fields, trial.seed)):
        if other == trial.id:
            continue
        folder = home.trial(other)
        fields = _fields_of(folder)
        if fields is None or folder.imported() or not is_current(folder.status().code):
            continue
        for path in folder.checkpoints.glob("step-*"):
            step = int(path.name.removeprefix("step-"))
            if (best is None or step > best.step) and takes_over(trial.fields, fields, step):
                best = Beginning(folder, step)
    return best


def _fields_of(folder: TrialFolder) -> Trial | None:
    try:
        described = folder.description()
        return None if described is None else described.trial
    except BadInput:
        return None
