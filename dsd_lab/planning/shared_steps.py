"""For how many steps two trials train alike, so that one can go on from the other's checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dsd_lab.core.training.schedule import learning_rate
from dsd_lab.errors import BadInput
from dsd_lab.home.beginnings import begun_alike
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial
from dsd_lab.training_code import is_current

_BY_TIME = {"training": ("steps", "phases"), "optimiser": ("schedule", "tail", "warmup_steps")}
"""Fields that may differ later on and mean the same until then."""


def beginning_key(trial: Trial, seed: int) -> str:
    """The same for trials of which one may go on from the other's checkpoint: all that cannot differ between them."""
    canonical = canonical_fields(trial)
    fixed: dict[str, Any] = {
        section: {key: value for key, value in fields.items() if key not in _BY_TIME.get(section, ())}
        for section, fields in canonical.items()
    }
    fixed["seed"] = seed
    fixed["target_encoder"] = trial.needs_target_encoder
    # Records are part of what is taken over.
    fixed["probe"], fixed["observation"] = trial.probe.model_dump(), trial.observation.model_dump()
    for name in ("checkpoints_kept", "keep_every"):
        fixed["observation"].pop(name, None)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]


def shared_steps(one: Trial, other: Trial) -> int:
    """Steps for which two trials of one `beginning_key` train alike, bit for bit.

    A cosine schedule falls towards a fixed end from its first step on: with other `training.steps`, nothing is shared.
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
    """Whether a checkpoint of another trial at a step is one that this trial would have, records included.

    At its last step a trial probes, draws and saves in any case; that is only taken over where this trial does too.
    """
    watch = trial.observation
    if step % watch.checkpoint_every or not 0 < step <= shared_steps(trial, other):
        return False
    if step < other.training.steps or step == trial.training.steps:
        return step < trial.training.steps or step == other.training.steps
    return all(step % every == 0 for every in (trial.probe.every, watch.images_every, watch.log_every))


@dataclass(frozen=True)
class Beginning:
    """A checkpoint of another trial that a trial can go on from."""

    folder: TrialFolder
    step: int


def find_beginning(home: Home, trial: PlannedTrial) -> Beginning | None:
    """The latest checkpoint of another trial of the home folder that a trial can go on from; files are not verified yet."""
    best: Beginning | None = None
    for other in begun_alike(home, beginning_key(trial.fields, trial.seed)):
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
