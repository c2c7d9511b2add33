"""Record which training code and device trained which steps, and refuse an unintended change of code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.home.trial_records import CodeFrom, DeviceFrom, Status
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.training_code import is_current, training_code

Segment = TypeVar("Segment", CodeFrom, DeviceFrom)


def refuse_other_code(home: Home, trials: list[PlannedTrial], allowed: bool) -> None:
    """Refuse to resume trials with other training code than they began with, unless `allowed`.

    Raises:
        BadInput: a trial that would resume from a checkpoint began with other training code.
    """
    folders = [home.trial(t.id) for t in trials]
    begun = [f for f in folders if f.state() not in ENDED and f.checkpoints.exists()]
    other = [f.root for f in begun if (code := _last_code(f)) is not None and not is_current(code)]
    if other and not allowed:
        raise BadInput(
            f"{len(other)} unfinished trials began with other training code than the present, the first in {other[0]}; remove their folders to retrain them, or resume them with --allow-code-change, which their records will show"
        )


def code_of(folder: TrialFolder) -> str:
    """Code hash to record for a trial that starts or resumes: its recorded hash where that gives the same results."""
    before = _last_code(folder)
    return before if before is not None and is_current(before) else training_code()


def trained_by(folder: TrialFolder, step: int) -> list[CodeFrom]:
    """Code segments of a trial that resumes at `step` with the present code.

    Segments beyond `step` are dropped, since those steps are trained again.
    """
    before, code = _last_code(folder), code_of(folder)
    known = folder.status().trained_by or ([] if before is None else [CodeFrom(code=before, step=0)])
    return _append_segment(known, CodeFrom(code=code, step=step))


def _append_segment(known: list[Segment], now: Segment) -> list[Segment]:
    """Drop the segments from the step of `now` on, and append `now` if it differs from the last one."""
    kept: list[Segment] = [entry for entry in known if entry.step < now.step]
    if not kept or kept[-1].what != now.what:
        kept.append(now)
    return kept


def format_codes(status: Status) -> str | None:
    """`0c6f2d9aba8d from step 0, 57ce7aa01b2c from step 800`; None where one code trained the whole trial."""
    return _format_segments(status.trained_by)


def _format_segments(entries: Sequence[Segment]) -> str | None:
    """The segments as text; None where there is only one."""
    return ", ".join(f"{e.what} from step {e.step:,}" for e in entries) if len(entries) > 1 else None


def _last_code(folder: TrialFolder) -> str | None:
    described = folder.description()  # in case a power cut emptied the status
    return folder.status().code or (None if described is None else described.provenance.code)


def trained_on(folder: TrialFolder, step: int, name: str) -> list[DeviceFrom]:
    """Device segments of a trial that resumes at `step` on the device `name`."""
    described, known = folder.description(), folder.status().trained_on
    if not known and described is not None:  # of the previous attempt
        origin = described.provenance
        known = [DeviceFrom(device=origin.machine.processor if origin.device == "cpu" else origin.device, step=0)]
    return _append_segment(known, DeviceFrom(device=name, step=step))


def format_devices(status: Status) -> str | None:
    """`NVIDIA A100 from step 0, NVIDIA H100 from step 800`; None where one device trained the whole trial."""
    return _format_segments(status.trained_on)
