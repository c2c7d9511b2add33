"""Which training code trained a trial: one from its first step to its last, unless somebody asked to go on with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.home.trial_records import CodeFrom, DeviceFrom, Status
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.training_code import is_current, training_code

From = TypeVar("From", CodeFrom, DeviceFrom)


def refuse_other_code(home: Home, trials: list[PlannedTrial], allowed: bool) -> None:
    """A trial is trained by one code from its first step to its last, unless that was `allowed` to change.

    Raises:
        BadInput: trials that would go on from a checkpoint began with other training code.
    """
    folders = [home.trial(t.id) for t in trials]
    begun = [f for f in folders if f.state() not in ENDED and f.checkpoints.exists()]
    other = [f.root for f in begun if (code := _last_code(f)) is not None and not is_current(code)]
    if other and not allowed:
        raise BadInput(
            f"{len(other)} unfinished trials began with other training code than today's, the first in {other[0]}; remove their folders to train them anew, or let them go on with --allow-code-change, which their records will say"
        )


def code_of(folder: TrialFolder) -> str:
    """What a trial that starts or resumes now records as its code: the hash that it has, where the results are the same."""
    before = _last_code(folder)
    return before if before is not None and is_current(before) else training_code()


def trained_by(folder: TrialFolder, step: int) -> list[CodeFrom]:
    """Codes with the step from which each trained, where today's goes on from a step.

    What was trained beyond that step is trained again, so that its codes are no part of the result.
    """
    before, code = _last_code(folder), code_of(folder)
    known = folder.status().trained_by or ([] if before is None else [CodeFrom(code=before, step=0)])
    return _went_on(known, CodeFrom(code=code, step=step))


def _went_on(known: list[From], now: From) -> list[From]:
    """What trained from which step, where `now` goes on from its step; what was trained beyond that is trained again."""
    kept: list[From] = [entry for entry in known if entry.step < now.step]
    if not kept or kept[-1].what != now.what:
        kept.append(now)
    return kept


def told_changes(status: Status) -> str | None:
    """`0c6f2d9aba8d from step 0, 57ce7aa01b2c from step 800`; None of a trial that one code trained."""
    return _told_in_turn(status.trained_by)


def _told_in_turn(entries: Sequence[From]) -> str | None:
    """What trained from which step, where it was more than one."""
    return ", ".join(f"{e.what} from step {e.step:,}" for e in entries) if len(entries) > 1 else None


def _last_code(folder: TrialFolder) -> str | None:
    described = folder.description()  # where a power cut has taken the status
    return folder.status().code or (None if described is None else described.provenance.code)


def trained_on(folder: TrialFolder, step: int, name: str) -> list[DeviceFrom]:
    """Devices with the step from which each trained, where one of this name goes on from a step."""
    described, known = folder.description(), folder.status().trained_on
    if not known and described is not None:  # of the attempt before
        origin = described.provenance
        known = [DeviceFrom(device=origin.machine.processor if origin.device == "cpu" else origin.device, step=0)]
    return _went_on(known, DeviceFrom(device=name, step=step))


def told_devices(status: Status) -> str | None:
    """`NVIDIA A100 from step 0, NVIDIA H100 from step 800`; None of a trial that one device trained."""
    return _told_in_turn(status.trained_on)
