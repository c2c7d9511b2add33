"""The home folder: where every trial, sweep, report and cache lies, and what state each trial is in.

    home/trials/<id>/     trial.json  status.json  spool.jsonl  checkpoints/  images/  evaluations/
    home/sweeps/<key>/    manifest.json
    home/reports/<key>/   home/cache/   home/weights/   home/mlflow.db   home/ray/

A trial's state is what its files say now: a status of `running` whose lock nobody holds is
`interrupted`, and a finished trial whose training code has changed since is `stale`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files import write_json

STATES = ("pending", "running", "done", "failed", "diverged", "interrupted", "stopped", "stale")
ENDED = ("done", "diverged")
"""States of a trial whose result stands."""
STOPPED = "stopped"
"""State of a trial that a forecast ended early: no result; a sweep that does not stop trials goes on with it."""
_LOCK_TRIES = 20


@dataclass(frozen=True)
class Home:
    """A home folder; nothing is made until something is written."""

    root: Path

    def trial(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.root / "trials" / trial_id)

    def sweep_folder(self, key: str) -> Path:
        return self.root / "sweeps" / key

    def sweep_is_running(self, key: str) -> bool:
        """Whether a living process runs the sweep."""
        return is_held(self.sweep_folder(key) / "lock")

    def report_folder(self, key: str) -> Path:
        return self.root / "reports" / key

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            BadInput: it is a file.
            NoResources: it cannot be written to.
        """
        if self.root.exists() and not self.root.is_dir():
            raise BadInput(f"--home {self.root}: is a file; name a folder")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise NoResources(f"--home {self.root}: cannot be written: {error.strerror}") from None

    def write_manifest(self, key: str, manifest: dict[str, Any]) -> None:
        """Record a sweep: its spec, profile and trials. Trials of earlier runs of it that are no longer named are forgotten here, not deleted."""
        folder = self.sweep_folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", manifest, durable=True)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """All recorded sweeps by key, the one that ran last at the end."""
        found = {path.parent.name: json.loads(path.read_text()) for path in self.root.glob("sweeps/*/manifest.json")}
        return dict(sorted(found.items(), key=lambda item: item[1]["run_at"]))


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
        """What the trial is (fields, seed, provenance); None before it first started."""
        return _read_json(self.root / "trial.json")

    def status(self) -> dict[str, Any]:
        """The recorded status; empty before the trial first started."""
        return _read_json(self.root / "status.json") or {}

    def write_status(self, **entries: Any) -> None:
        """Replace entries of the status."""
        write_json(self.root / "status.json", self.status() | entries)

    def state(self, code: str | None = None) -> str:
        """One of `STATES`.

        Args:
            code: hash of the present training code; where it is given, a finished trial of other code is `stale`.
        """
        status = self.status()
        recorded = status.get("state", "pending")
        if recorded == "running" and not self.is_locked():
            return "interrupted"
        if recorded in ENDED and code is not None and status.get("code") != code:
            return "stale"
        return str(recorded)

    def is_locked(self) -> bool:
        """Whether a living process works on the trial."""
        return is_held(self.root / "lock")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the trial; yields False where another process holds it. Death of the process frees it."""
        self.root.mkdir(parents=True, exist_ok=True)
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
        """Finished evaluations by id."""
        paths = sorted((self.root / "evaluations").glob("*.json"))
        return {path.stem: json.loads(path.read_text()) for path in paths}


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory file lock; without `wait`, yields False at once where it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock; asking makes no file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (FileNotFoundError, ValueError):  # a power cut can leave a file empty or torn: it is as if never written
        return None
