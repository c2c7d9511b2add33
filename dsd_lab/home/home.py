"""The home folder: layout of trials, sweeps, reports and caches.

    home/trials/<id>/     trial.json  status.json  progress.json  spool.jsonl  checkpoints/  images/  evaluations/
    home/sweeps/<key>/    manifest.json  revisions.json (all requests so far)
    home/dsd-lab-home.json (the mark)
    home/reports/<key>/   home/cache/   home/weights/   home/plugins/   home/mlflow.db   home/ray/

A trial's state follows from its files. A status `running` whose lock is free means
`interrupted`; a finished trial whose training code has changed is `stale`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.atomic import create_beside, make_folder
from dsd_lab.files.locks import is_held, locked
from dsd_lab.home.mark import MARK, mark_home
from dsd_lab.home.record_types import FORMAT, DamagedRecord
from dsd_lab.home.revisions import record_revision
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_folder import TrialFolder

_MAX_PATH = 4095 - 400
"""Bytes of a home's path. Linux allows 4,095 in all, and the names below need the rest."""


@dataclass(frozen=True)
class Home:
    """A home folder; it is created when something is first written."""

    root: Path

    def trial(self, trial_id: str) -> TrialFolder:
        # The id may come from an untrusted file, and the path is written to and deleted.
        if trial_id in ("", ".", "..") or Path(trial_id).name != trial_id:
            raise BadInput(f"{trial_id[:200]!r} is not a trial id")
        return TrialFolder(self.root / "trials" / trial_id)

    def sweep_folder(self, key: str) -> Path:
        return self.root / "sweeps" / key

    def sweep_is_running(self, key: str) -> bool:
        """Whether a live process runs the sweep."""
        return is_held(self.sweep_folder(key) / "lock")

    def report_folder(self, key: str) -> Path:
        return self.root / "reports" / key

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def id(self) -> str:
        """Random id of this home folder, 32 hexadecimal digits, created once. It stays when the folder moves."""
        return mark_home(self.root)

    def prepare(self) -> None:
        """Create the folder and its mark file where they are missing.

        Raises:
            BadInput: it is a file.
            NoResources: it cannot be written to.
        """
        self.check_writable()
        try:
            mark_home(self.root)
        except OSError as error:
            raise NoResources(f"--home {self.root / MARK}: cannot be written: {error.strerror}") from None

    def check_writable(self) -> None:
        """Create the folder and test that it is writable.

        Raises:
            BadInput: it is a file, or its path is too long.
            NoResources: it cannot be written to.
        """
        length = len(os.fsencode(os.path.abspath(self.root)))
        if length > _MAX_PATH:
            shown = str(self.root)[:100]
            raise BadInput(
                f"--home {shown}...: its path of {length:,} bytes is too long; at most {_MAX_PATH:,} are allowed"
            )
        if self.root.exists() and not self.root.is_dir():
            raise BadInput(f"--home {self.root}: is a file; give a folder")
        try:
            make_folder(self.root)
            handle, probe = create_beside(self.root / "writable")
            os.close(handle)
            os.unlink(probe)
        except OSError as error:
            raise NoResources(f"--home {self.root}: cannot be written: {error.strerror}") from None

    def write_manifest(self, manifest: Manifest, command: str | None = None) -> str | None:
        """Record a sweep: spec, profile and trials; and in its history the request, its time and its command line.

        Trials that were trained singly stay listed.

        Returns:
            A line on how the settings differ from the last recorded ones; None where they do not.

        Raises:
            BadInput: the record is newer than this program, or the history cannot be read.
        """
        path = self.sweep_folder(manifest.key) / "manifest.json"
        with locked(path.with_suffix(".lock")):
            before = _undamaged(path)
            changes = record_revision(path.parent, before, manifest, manifest.ids, command)
            kept = {"kept": before.kept} if before is not None and before.kept else {}
            manifest.model_copy(update={"format": FORMAT, **kept}).write(path, durable=True)
            return changes

    def keep_trial(self, trial_id: str, manifest: Manifest, command: str | None = None) -> Manifest:
        """Add a trial that was trained singly to a sweep's record, so that `gc` does not offer it.

        Args:
            trial_id: of the trial.
            manifest: of its sweep; recorded where the sweep has no record, else the existing record stays.
            command: command line of the request.

        Returns:
            The sweep's record.

        Raises:
            BadInput: the record is damaged, or newer than this program.
        """
        path = self.sweep_folder(manifest.key) / "manifest.json"
        with locked(path.with_suffix(".lock")):
            recorded = _manifest(path) if path.exists() else manifest.model_copy(update={"format": FORMAT})
            record_revision(path.parent, _undamaged(path), manifest, [trial_id], command)
            recorded = recorded.changed(kept=[*(i for i in recorded.kept if i != trial_id), trial_id])
            recorded.write(path, durable=True)
            return recorded

    def manifests(self) -> dict[str, Manifest]:
        """All recorded sweeps by key: imported ones first, then those run here, the latest last.

        Raises:
            BadInput: a manifest is damaged, or newer than this program.
        """
        found = {path.parent.name: _manifest(path) for path in self.root.glob("sweeps/*/manifest.json")}
        return dict(sorted(found.items(), key=lambda item: (item[1].imported is None, item[1].run_at)))


def _manifest(path: Path) -> Manifest:
    """Read a manifest, which may be foreign: its key must be its folder's name.

    Raises:
        BadInput: it is damaged, newer than this program, or belongs to another sweep.
    """
    found, wrong = None, "is damaged"
    try:
        found = Manifest.read(path)
    except OSError:
        pass
    except DamagedRecord as damage:
        wrong = damage.reason
    if found is not None and found.key != path.parent.name:
        wrong = f"its key {found.key!r} differs from the name of its folder"
    if found is None or found.key != path.parent.name:
        raise DamagedRecord(str(path), f"{wrong}; move it away and re-run the sweep; finished trials are not retrained")
    return found


def _undamaged(path: Path) -> Manifest | None:
    """A manifest; None where it is missing or damaged.

    Raises:
        BadInput: it is newer than this program.
    """
    try:
        return _manifest(path) if path.exists() else None
    except DamagedRecord:
        return None
