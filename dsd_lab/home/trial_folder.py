"""The folder of one trial, and the states that a trial can be in."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import make_folder, write_json
from dsd_lab.files.bounded import read_json_object
from dsd_lab.files.locks import is_held, locked
from dsd_lab.home.names import are_metrics
from dsd_lab.specs.renamed import present_record
from dsd_lab.training_code import same_results

STATES = ("pending", "running", "done", "failed", "diverged", "interrupted", "stopped", "stale", "other images")


ENDED = ("done", "diverged")
"""States of a trial whose result stands."""


STOPPED = "stopped"
"""State of a trial that a forecast ended early: no result; a sweep that does not stop trials goes on with it."""


OTHER_IMAGES = "other images"
"""What a trial of a sweep is called whose images are not those of the sweep's other trials; its own state stays."""


FORMAT = 1
"""Version of the files below a home folder; one that says none is of the first."""


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

    def description(self) -> dict[str, Any] | None:
        """What the trial is (fields, seed, provenance); None before it first started.

        Raises:
            BadInput: it is newer than this program.
        """
        path = self.root / "trial.json"
        content = read_record(path)
        return None if content is None else present_record(readable(content, path))

    def status(self) -> dict[str, Any]:
        """The recorded status; empty before the trial first started."""
        status = read_record(self.root / "status.json") or {}
        if status.get("state") == "running":
            progress = read_record(self.root / "progress.json") or {}
            if progress.get("attempt") == status.get("attempt"):
                return status | progress
        return status

    def imported(self) -> dict[str, Any] | None:
        """Which sweep an import brought the trial with, when, and what exported it; None where it was trained here."""
        return read_record(self.root / "imported.json")

    def mark_imported(self, sweep: str, made_by: dict[str, str], folder: Path | None = None) -> None:
        """Record that somebody else trained the trial.

        Args:
            sweep: that it came with.
            made_by: program and code that exported it.
            folder: where its files still are; None is their place.
        """
        write_json((folder or self.root) / "imported.json", {"sweep": sweep, "at": time.time(), "made_by": made_by})

    def write_status(self, **entries: Any) -> None:
        """Replace entries of the status; it survives a power cut."""
        write_json(self.root / "status.json", self.status() | entries, durable=True)

    def write_progress(self, **entries: Any) -> None:
        """Say how far a running trial is, about once a second, in a file of its own that is not flushed.

        A power cut can leave it empty. The status beside it, which says what trained the trial, stays whole.
        """
        attempt = (read_record(self.root / "status.json") or {}).get("attempt")
        write_json(self.root / "progress.json", {"attempt": attempt, **entries})

    def state(self, code: str | None = None) -> str:
        """One of `STATES`.

        Args:
            code: hash of the present training code; where it is given, a finished trial of other code is `stale`.
        """
        status = self.status()
        recorded = status.get("state", "pending")
        if recorded == "running" and not self.is_locked():
            return "interrupted"
        if recorded in ENDED and not self._has_records(status):
            return "interrupted"
        if recorded in ENDED and code is not None and same_results(status.get("code")) != same_results(code):
            return "stale"
        return str(recorded)

    def _has_records(self, status: dict[str, Any]) -> bool:
        """Whether the spool of an ended trial has the size that it ended with; what was lost is trained again."""
        written = status.get("spool_bytes")
        if not isinstance(written, int):  # of an earlier version
            return True
        try:
            return self.spool.stat().st_size >= written
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

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Finished evaluations by id; one that is damaged is not finished."""
        found = {path.stem: read_record(path) for path in sorted((self.root / "evaluations").glob("*.json"))}
        return {key: content for key, content in found.items() if content and are_metrics(content.get("metrics"))}


def stale_note(states: Iterable[str], code: str) -> str | None:
    """One line about trials that are `stale`, where there are any; `code` is the hash of today's training code."""
    count = sum(state == "stale" for state in states)
    if not count:
        return None
    which = "trial is" if count == 1 else "trials are"
    return (
        f"{count} {which} stale: done, by other training code than today's ({code}). Results stand and are reported; "
        "`dsd-lab logs TRIAL` names the code, `dsd-lab reproduce TRIAL` shows whether today's gives the same"
    )


def readable(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a file, where this program can read its version.

    Raises:
        BadInput: it is newer.
    """
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise BadInput(f"{path}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab")
    return content


def read_record(path: Path) -> dict[str, Any] | None:
    """A power cut can leave a file empty or torn: it is as if never written."""
    return read_json_object(path)
