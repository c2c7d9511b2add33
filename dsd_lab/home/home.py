"""The home folder: where every trial, sweep, report and cache lies, and what state each trial is in.

    home/trials/<id>/     trial.json  status.json  progress.json  spool.jsonl  checkpoints/  images/  evaluations/
    home/sweeps/<key>/    manifest.json  revisions.json (everything that was ever asked)
    home/dsd-lab-home.json (the mark)
    home/reports/<key>/   home/cache/   home/weights/   home/plugins/   home/mlflow.db   home/ray/

A trial's state is what its files say now: a status of `running` whose lock nobody holds is
`interrupted`, and a finished trial whose training code has changed since is `stale`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.atomic import make_folder
from dsd_lab.files.locks import is_held, locked
from dsd_lab.home.mark import MARK, mark_home
from dsd_lab.home.record_types import FORMAT, DamagedRecord
from dsd_lab.home.revisions import record_revision
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_folder import TrialFolder

_LONGEST = 4095 - 400
"""Bytes of a home's path: Linux takes 4,095, and the names below it need the rest."""


@dataclass(frozen=True)
class Home:
    """A home folder; nothing is made until something is written."""

    root: Path

    def trial(self, trial_id: str) -> TrialFolder:
        # Whoever asks, and whatever file the name is from: what is below it may be written, and deleted.
        if trial_id in ("", ".", "..") or Path(trial_id).name != trial_id:
            raise BadInput(f"{trial_id[:200]!r} is not the id of a trial")
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

    @property
    def id(self) -> str:
        """What tells this home folder from all others, wherever it lies: 32 random hexadecimal digits, made once."""
        return mark_home(self.root)

    def prepare(self) -> None:
        """Make the folder, and mark it as a home where it has no mark.

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
        """Make the folder, and try to write in it.

        Raises:
            BadInput: it is a file, or its path is too long.
            NoResources: it cannot be written to.
        """
        length = len(os.fsencode(os.path.abspath(self.root)))
        if length > _LONGEST:
            shown = str(self.root)[:100]
            raise BadInput(f"--home {shown}...: its path of {length:,} bytes is too long; the longest is {_LONGEST:,}")
        if self.root.exists() and not self.root.is_dir():
            raise BadInput(f"--home {self.root}: is a file; name a folder")
        try:
            make_folder(self.root)
            probe = self.root / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise NoResources(f"--home {self.root}: cannot be written: {error.strerror}") from None

    def write_manifest(self, manifest: Manifest, command: str | None = None) -> str | None:
        """Record a sweep: its spec, profile and trials, and in its history what was asked, when and by which command.

        Trials that were trained one by one stay named.

        Returns:
            A line that says how the settings differ from those that stood; None where they do not.

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
        """Name a trial beside those of a sweep: nobody who trained a single trial wants to be offered it as garbage.

        Args:
            trial_id: of the trial.
            manifest: of its sweep, which is recorded where the sweep has no record; else its record stays as it is.
            command: the command line that asks for it.

        Returns:
            The sweep's record.

        Raises:
            BadInput: that record is damaged, or newer than this program.
        """
        path = self.sweep_folder(manifest.key) / "manifest.json"
        with locked(path.with_suffix(".lock")):
            recorded = _manifest(path) if path.exists() else manifest.model_copy(update={"format": FORMAT})
            record_revision(path.parent, _undamaged(path), manifest, [trial_id], command)
            recorded = recorded.changed(kept=[*(i for i in recorded.kept if i != trial_id), trial_id])
            recorded.write(path, durable=True)
            return recorded

    def manifests(self) -> dict[str, Manifest]:
        """All recorded sweeps by key: those that were imported, then those that ran here, the one that ran last at the end.

        Raises:
            BadInput: a manifest is damaged, or newer than this program.
        """
        found = {path.parent.name: _manifest(path) for path in self.root.glob("sweeps/*/manifest.json")}
        return dict(sorted(found.items(), key=lambda item: (item[1].imported is None, item[1].run_at)))


def _manifest(path: Path) -> Manifest:
    """A manifest. It may be anybody's file: what it names leads to no other place than those of its sweep and its trials.

    Raises:
        BadInput: it is damaged, newer than this program, or of another sweep than its folder says.
    """
    found, wrong = None, "is damaged"
    try:
        found = Manifest.read(path)
    except OSError:
        pass
    except DamagedRecord as damage:
        wrong = damage.reason
    if found is not None and found.key != path.parent.name:
        wrong = f"its key {found.key!r} is not the name of its folder"
    if found is None or found.key != path.parent.name:
        raise DamagedRecord(str(path), f"{wrong}; move it away and run its sweep again, which trains nothing anew")
    return found


def _undamaged(path: Path) -> Manifest | None:
    """A manifest; None where there is none, or a damaged one.

    Raises:
        BadInput: it is newer than this program.
    """
    try:
        return _manifest(path) if path.exists() else None
    except DamagedRecord:
        return None
