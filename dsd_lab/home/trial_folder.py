"""The folder of one trial, and the states that a trial can be in."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lab.files.atomic import make_folder, write_json
from dsd_lab.files.locks import is_held, locked
from dsd_lab.home.record_types import TEXT
from dsd_lab.home.trial_records import Evaluation, ImportedTrial, ProgressRecord, Status, TrialRecord
from dsd_lab.training_code import same_results

STATES = ("pending", "running", "done", "failed", "diverged", "interrupted", "stopped", "stale", "other images")
ENDED = ("done", "diverged")
"""States of a trial whose result stands."""
STOPPED = "stopped"
"""State of a trial that a forecast ended early: no result; a sweep that does not stop trials goes on with it."""
OTHER_IMAGES = "other images"
"""What a trial of a sweep is called whose images are not those of the sweep's other trials; its own state stays."""
_LOCK_TRIES = 20


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial."""

    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def spool(self) -> Path:
        return self.root / "spool.jsonl"

    @property
    def images(self) -> Path:
        return self.root / "images"

    def description(self) -> TrialRecord | None:
        """What the trial is (fields, seed, provenance); None before it first started.

        Raises:
            BadInput: it is newer than this program, or no such record.
        """
        return TrialRecord.read(self.root / "trial.json")

    def status(self) -> Status:
        """The recorded status; `pending` before the trial first started.

        Raises:
            BadInput: it is no such record.
        """
        status = self._status()
        if status.state == "running":
            progress = ProgressRecord.known(self.root / "progress.json")
            if progress is not None and progress.attempt == status.attempt:
                return status.model_copy(update=progress.model_dump())
        return status

    def _status(self) -> Status:
        return Status.read(self.root / "status.json") or Status()

    def imported(self) -> ImportedTrial | None:
        """Which sweep an import brought the trial with, when, and what exported it; None where it was trained here."""
        return ImportedTrial.read(self.root / "imported.json")

    def mark_imported(self, sweep: str, made_by: dict[str, str], folder: Path) -> None:
        """Record that somebody else trained the trial; its files are still in `folder`."""
        ImportedTrial(sweep=sweep, at=time.time(), made_by=made_by).write(folder / "imported.json")

    def write_status(self, **entries: Any) -> None:
        """Replace entries of the status; it survives a power cut."""
        if entries.get("error"):
            entries["error"] = str(entries["error"])[:TEXT]
        self.status().changed(**entries).write(self.root / "status.json", durable=True)

    def write_progress(self, step: int, seconds: float, updated: float) -> None:
        """Say how far a running trial is, about once a second, in a file of its own that is not flushed.

        A power cut can leave it empty. The status beside it, which says what trained the trial, stays whole.
        """
        now = ProgressRecord(attempt=self._status().attempt, step=step, seconds=seconds, updated=updated)
        now.write(self.root / "progress.json")

    def state(self, code: str | None = None, status: Status | None = None) -> str:
        """One of `STATES`.

        Args:
            code: hash of the present training code; where it is given, a finished trial of other code is `stale`.
            status: the trial's, where it has just been read.
        """
        status = status or self._status()
        if status.state == "running" and not self.is_locked():
            return "interrupted"
        if status.state in ENDED and not self._has_records(status):
            return "interrupted"
        if status.state in ENDED and code is not None and same_results(status.code) != same_results(code):
            return "stale"
        return status.state

    def _has_records(self, status: Status) -> bool:
        """Whether the spool of an ended trial has the size that it ended with; what was lost is trained again."""
        if status.spool_bytes is None:  # of an earlier version
            return True
        try:
            return self.spool.stat().st_size >= status.spool_bytes
        except FileNotFoundError:
            return False

    def is_locked(self) -> bool:
        """Whether a living process works on the trial."""
        return is_held(self.root / "lock")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the trial; yields False where another process holds it. Death of the process frees it."""
        make_folder(self.root)
        for _ in range(_LOCK_TRIES):
            with locked(self.root / "lock", wait=False) as held:
                if held:
                    yield True
                    return
            time.sleep(0.01)  # `is_locked` elsewhere may have held it, which takes microseconds
        yield False

    def say_evaluating(self, how_far: str | None) -> None:
        """Record in words how far the evaluations are; None when they have ended."""
        if how_far is None:
            (self.root / "evaluating.json").unlink(missing_ok=True)
        else:
            write_json(self.root / "evaluating.json", how_far)

    def evaluating(self) -> str | None:
        """What a living process last said of its evaluations."""
        try:
            return str(json.loads((self.root / "evaluating.json").read_text())) if self.is_locked() else None
        except (FileNotFoundError, ValueError):
            return None

    def evaluations(self) -> dict[str, Evaluation]:
        """Finished evaluations by id; one that is damaged is not finished."""
        found = {path.stem: Evaluation.known(path) for path in sorted((self.root / "evaluations").glob("*.json"))}
        return {key: content for key, content in found.items() if content is not None}


_EXPLAINED = {
    "interrupted": "ended before its last step; the same `dsd-lab sweep` goes on from the last checkpoint",
    "diverged": "a loss or a weight was no longer finite, so training ended there; that is a result: it is not trained again, and has no verdict",
    "failed": "an error ended it; `dsd-lab logs TRIAL` shows which, `dsd-lab sweep SPEC --retry-failed` runs it again",
    STOPPED: "a forecast of collapse ended it early (--stop-collapsed); it has no verdict, and a sweep without that option goes on with it",
    OTHER_IMAGES: "trained on other images than the sweep's other trials; its values are in no table of the report",
    "stale": "done, by other training code than today's ({code}); the result stands and is reported; `dsd-lab logs TRIAL` names the code, `dsd-lab reproduce TRIAL` shows whether today's gives the same",
}
"""What a state that does not explain itself means, and what to do."""


def state_notes(states: Iterable[str], code: str) -> list[str]:
    """A line on each state that does not explain itself, where a trial is in it; `code` is the hash of today's training code."""
    present = set(states)
    return [f"{state}: {what.format(code=code)}" for state, what in _EXPLAINED.items() if state in present]
