"""The folder of a trial, and the states of a trial."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lab.files.atomic import make_folder, write_json
from dsd_lab.files.bounded import read_json
from dsd_lab.files.locks import is_held, locked
from dsd_lab.home.record_types import TEXT
from dsd_lab.home.trial_records import Evaluation, ImportedTrial, ProgressRecord, Status, TrialRecord
from dsd_lab.training_code import same_results

STATES = ("pending", "running", "done", "failed", "diverged", "interrupted", "stopped", "stale", "other images")
ENDED = ("done", "diverged")
"""States with a final result."""
STOPPED = "stopped"
"""State of a trial that a forecast ended early. It has no result; a sweep without early stopping resumes it."""
OTHER_IMAGES = "other images"
"""Shown instead of the state where a trial's images differ from those of the sweep's other trials."""
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

    def saved_steps(self) -> list[int]:
        """Steps of the checkpoints that are there."""
        names = (path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def description(self) -> TrialRecord | None:
        """The trial's record (fields, seed, provenance); None before it first started.

        Raises:
            BadInput: it is newer than this program, or damaged.
        """
        return TrialRecord.read(self.root / "trial.json")

    def status(self) -> Status:
        """The recorded status; `pending` before the trial first started.

        Raises:
            BadInput: it is damaged.
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
        """The record of the import (sweep, time, exporter); None where the trial was trained here."""
        return ImportedTrial.read(self.root / "imported.json")

    def mark_imported(self, sweep: str, made_by: dict[str, str], folder: Path) -> None:
        """Record that the trial was trained elsewhere; its files are still in `folder`."""
        ImportedTrial(sweep=sweep, at=time.time(), made_by=made_by).write(folder / "imported.json", durable=True)

    def write_status(self, **entries: Any) -> None:
        """Update entries of the status; the update survives a power cut."""
        if entries.get("error"):
            entries["error"] = str(entries["error"])[:TEXT]
        self.status().changed(**entries).write(self.root / "status.json", durable=True)

    def write_progress(self, step: int, seconds: float, updated: float) -> None:
        """Record a running trial's progress, about once a second, in a separate file without a flush.

        A power cut can empty this file but not the status.
        """
        now = ProgressRecord(attempt=self._status().attempt, step=step, seconds=seconds, updated=updated)
        now.write(self.root / "progress.json")

    def state(self, code: str | None = None, status: Status | None = None) -> str:
        """The state, one of `STATES`.

        Args:
            code: hash of the present training code; if given, a finished trial of other code is `stale`.
            status: the trial's status, if already read.
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
        """Whether the spool of an ended trial has its recorded size. A trial with lost records is retrained."""
        if status.spool_bytes is None:  # written by an earlier version
            return True
        try:
            return self.spool.stat().st_size >= status.spool_bytes
        except FileNotFoundError:
            return False

    def is_locked(self) -> bool:
        """Whether a live process holds the trial."""
        return is_held(self.root / "lock")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the trial's lock, also freed by the process's death. Yields False where another process holds it."""
        make_folder(self.root)
        for _ in range(_LOCK_TRIES):
            with locked(self.root / "lock", wait=False) as held:
                if held:
                    yield True
                    return
            time.sleep(0.01)  # `is_locked` of another process may hold it for microseconds
        yield False

    def say_evaluating(self, progress: str | None) -> None:
        """Record the progress of evaluations as text; None when they are finished."""
        if progress is None:
            (self.root / "evaluating.json").unlink(missing_ok=True)
        else:
            write_json(self.root / "evaluating.json", progress)

    def evaluating(self) -> str | None:
        """The progress of evaluations last recorded by a live process."""
        try:
            return str(read_json(self.root / "evaluating.json")) if self.is_locked() else None
        except (OSError, ValueError, RecursionError):
            return None

    def evaluations(self) -> dict[str, Evaluation]:
        """Finished evaluations by id; a damaged record counts as unfinished."""
        found = {path.stem: Evaluation.known(path) for path in sorted((self.root / "evaluations").glob("*.json"))}
        return {key: content for key, content in found.items() if content is not None}


_EXPLAINED = {
    "interrupted": "the process ended before the last step; the same `dsd-lab sweep` resumes from the last checkpoint",
    "diverged": "a loss or weight became NaN or infinite, which ended training; this is a result: the trial is not retrained and has no verdict",
    "failed": "ended by an error; `dsd-lab logs TRIAL` shows it, `dsd-lab sweep SPEC --retry-failed` runs the trial again",
    STOPPED: "ended early by a forecast of collapse (--stop-collapsed); it has no verdict, and a sweep without that option resumes it",
    OTHER_IMAGES: "trained on different images than the sweep's other trials; the report leaves it out",
    "stale": "finished with other training code than the present ({code}); the result is valid and reported; `dsd-lab logs TRIAL` names the code, `dsd-lab reproduce TRIAL` tests whether the present code gives the same",
}
"""Explanation of states that are not self-explanatory, and what to do."""


def state_notes(states: Iterable[str], code: str) -> list[str]:
    """An explanation per state that needs one; `code` is the hash of the present training code."""
    present = set(states)
    return [f"{state}: {what.format(code=code)}" for state, what in _EXPLAINED.items() if state in present]
