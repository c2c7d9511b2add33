"""The store. `sweep_runs.py` and `replay.py` write it, `reading.py` reads it, `shared.py` finds this home's runs.

Spools are replayed into MLflow: an experiment per spec, a parent run per sweep and a child run per trial, found by
their tags. A metric is identified by run, name and step, so a repeated replay duplicates nothing. Training never
waits for the store.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from dsd_lab.errors import BadInput
from dsd_lab.files.database import sqlite_path
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import printable, say
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry, Manifest
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.store.descriptions import attach_report, record_verdicts
from dsd_lab.store.faults import StoreUnavailable, translate_errors
from dsd_lab.store.moved import artifacts_uri, relocate
from dsd_lab.store.own_runs import Record
from dsd_lab.store.reading import Reader, StoredTrial
from dsd_lab.store.replay import sync_run
from dsd_lab.store.shared import HomeRuns
from dsd_lab.store.sweep_runs import Writer, imported_with
from dsd_lab.store.uri import default_uri, own_uri, refuse_files, with_driver


@dataclass
class Store:
    """An MLflow store. A lock protects the creation of a new SQLite schema.

    Args:
        home: whose trials are stored.
        uri: tracking URI; None: `default_uri`.

    Raises:
        BadInput: the address is not of a usable store.
        StoreUnavailable: the store does not answer.
    """

    home: Home
    uri: str | None = None
    _notes: dict[str, None] = field(default_factory=dict)
    """Problems that were skipped while trials were read."""
    _printed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.uri = self.uri or default_uri(self.home.root)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # MLflow logs a traceback for every database error, which `_translate_errors` reports in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        refuse_files(self.uri)
        with locked(self.home.root / ".mlflow.lock"), translate_errors(self.uri):
            own = self.uri == own_uri(self.home.root)
            if (database := sqlite_path(self.uri)) is not None:
                relocate(database, self.home.root, self.home.id, own)
            if own:
                (self.home.root / "mlflow.db").touch()  # SQLite would ignore the umask
            _artifact_repos_cache.clear()  # keyed by run only, but copies of a home share runs
            self.client = MlflowClient(tracking_uri=with_driver(self.uri))
            self.client.search_experiments(max_results=1)
            self.ours = HomeRuns(self.client, self.home, own, _say, Record(self.home, None if own else self.uri))
            artifacts = artifacts_uri(self.home.root)
            local = self.uri.startswith("sqlite:")
            self._writer = Writer(self.client, self.home, self.ours, artifacts if local else None)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            with translate_errors(str(self.uri)):
                yield
        except StoreUnavailable:
            self._writer.forget()
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Writer]:
        """Exclusive access for this home. New runs are recorded even if the block fails."""
        with locked(self.home.root / ".upload.lock"), self._translate_errors():
            try:
                yield self._writer
            finally:
                self.ours.record.save()

    @property
    def notices(self) -> list[str]:
        """One line per problem that was skipped, or resolved with files of the home folder."""
        return [printable(line) for line in [*self.ours.notices(), *self._notes]]

    def say_notices(self) -> None:
        """Print the notices that were not printed yet."""
        for line in self.notices:
            if line not in self._printed:
                _say(line)
        self._printed.update(self.notices)

    # -- Writing -------------------------------------------------------------------------------------

    def sync(self, manifest: Manifest) -> int:
        """Bring the store up to date with a sweep's trials. Returns the number of new spool lines.

        Raises:
            StoreUnavailable: the store failed midway; the next call continues.
        """
        with self._writing() as writer:
            sweep = writer.sweep(manifest)
            new, faults = 0, []
            for entry in manifest.trials:
                try:
                    new += writer.trial(sweep, entry)
                except BadInput as error:  # a damaged file must not block other trials
                    faults.append(error)
            writer.machine(sweep)
            writer.settle(sweep, manifest)
            if faults:
                raise faults[0]
            return new

    def attach_report(
        self, manifest: Manifest, folder: Path, note: str, verdicts: dict[str, str | None], place: str = "report"
    ) -> None:
        """Add a report to a sweep's parent run, and verdicts to the runs of its trials.

        Args:
            manifest: of the sweep.
            folder: of the report: pages, and tables and figures in it or in a subfolder named by the sweep's key.
            note: summary in Markdown for the description of the parent run.
            verdicts: on the latents, by trial id; None: no verdict.
            place: folder among the artifacts.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._writing() as writer:
            sweep = writer.sweep(manifest)
            attach_report(self.client, sweep.parent, folder, manifest.key, place, note)
            own = f"tags.`dsd.sweep` = '{manifest.key}' and tags.`dsd.kind` != 'sweep'"
            record_verdicts(self.client, self.ours.runs(own, sweep.everywhere), verdicts)

    def close_orphans(self, dry_run: bool = False) -> list[str]:
        """Close as KILLED this home's runs that are marked RUNNING without a live process. Returns their names.

        A power cut or a killed uploader leaves such runs. The next `sync` sets the state of the trial's files. Runs of
        other homes in a shared store are not touched.

        Args:
            dry_run: only find them.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._writing():
            orphans = [run for run in self.ours.runs("attributes.status = 'RUNNING'") if self._is_orphan(run)]
            for run in [] if dry_run else orphans:
                ended = self.home.trial(run.data.tags.get("dsd.trial", "-")).status().updated or time.time()
                self.client.set_terminated(run.info.run_id, "KILLED", int(1000 * ended))
                if "dsd.settled" in run.data.tags:
                    self.client.delete_tag(run.info.run_id, "dsd.settled")
            return [str(run.info.run_name) for run in orphans]

    def _is_orphan(self, run: Run) -> bool:
        tags = run.data.tags
        sweep, trial = tags.get("dsd.sweep"), tags.get("dsd.trial")
        if sweep is None or self.home.sweep_is_running(sweep):
            return False
        return not (trial is not None and self.home.trial(trial).is_locked())

    # -- Reading -------------------------------------------------------------------------------------

    def read(self, manifest: Manifest, scratch: Path) -> list[StoredTrial]:
        """Trials of a sweep as stored. Remote artifacts are downloaded below `scratch`.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translate_errors():
            trials, self._writer.current = self._writer.current, None
            if trials is None:
                trials = self.ours.runs("tags.`dsd.kind` = 'trial'")
            own = artifacts_uri(self.home.root) if self.ours.own else None
            reader = Reader(self.client, scratch, own, self._rewrite, lambda line: self._notes.setdefault(line))
            return [self._stored(reader, entry, trials) for entry in manifest.trials]

    def _stored(self, reader: Reader, entry: Entry, trials: list[Run]) -> StoredTrial:
        """A trial from this home's run; if it was never here, from another home's run, and marked as imported."""
        folder = self.home.trial(entry.id)
        runs, status = [run for run in trials if run.data.tags["dsd.trial"] == entry.id], folder.status()
        if status.state != "pending":
            what = (str(status.code), imported_with(folder))
            runs = [run for run in runs if (run.data.tags["dsd.code"], run.data.tags.get("dsd.imported")) == what]
            return reader.stored(entry, runs[-1] if runs else None, folder)
        recorded = [run for run in runs if self.ours.is_recorded(run)]
        if recorded:
            return reader.stored(entry, recorded[-1], None)
        found = reader.stored(entry, next(reversed(runs or self.ours.of_any_home(entry.id)), None), None)
        if found.folder is not None:
            found.tags.setdefault("dsd.imported", "another home of the store")
        return found

    def _rewrite(self, run: Run, folder: TrialFolder) -> None:
        _say(f"the artifacts of {run.info.run_name!r} are missing in the store; they are written again")
        settled = str(run.data.tags.get("dsd.settled"))
        sync_run(self.client, run, folder, folder.state(), settled, self._writer.verified_runs, reupload=True)


def _say(line: str) -> None:
    say(f"dsd-lab: {line}", error=True)
