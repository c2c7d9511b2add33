"""Read trials from a store. Its files may be damaged or foreign."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors import SafetensorError, safe_open

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import check_plain
from dsd_lab.home.sweep_records import Entry
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.home.trial_records import Parameters, TrialRecord
from dsd_lab.store.artifacts import write_artifacts

_COLUMNS = ("step", "name", "index", "value")
_MAX_ROWS = 50_000_000
"""Of a trial's history: about a gigabyte."""
_READ = ("history.parquet", "trial.json", "final", "images", "evaluations")
"""Artifacts of a trial that a report reads."""


@dataclass
class StoredTrial:
    """A sweep's trial as stored."""

    entry: Entry
    """The trial's row of the sweep's manifest."""
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path | None
    """Downloaded artifacts: history.parquet, trial.json, final/*.png; None where the trial was never started."""


@dataclass(frozen=True)
class Reader:
    """Reads trials from their runs.

    Args:
        client: of the store.
        scratch: download folder for artifacts.
        own: URI of the folder of all artifacts if the store is the home's own; None for another store, which may
            keep artifacts anywhere.
        rewrite: called with a run and its trial's folder if the run's artifacts are missing.
        note: called with a line about a skipped problem.
    """

    client: MlflowClient
    scratch: Path
    own: str | None
    rewrite: Callable[[Run, TrialFolder], None]
    note: Callable[[str], None]

    def stored(self, entry: Entry, run: Run | None, folder: TrialFolder | None) -> StoredTrial:
        """Read a trial from its run; pending where there is no run or it is unreadable.

        Args:
            entry: the trial's row of a manifest.
            run: of the trial.
            folder: of the trial in this home; replaces missing or damaged artifacts.
        """
        pending = StoredTrial(entry, {"dsd.state": "pending"}, {}, None)
        if run is None:
            return pending
        place = self._fetched(entry.id, run)
        started = folder is not None and folder.description() is not None and not folder.is_locked()
        if folder is not None and started and place is not None and not (place / "history.parquet").exists():
            self.rewrite(run, folder)
            run = self.client.get_run(run.info.run_id)
            place = self._fetched(entry.id, run)
        if place is not None and not (reason := damage(place)):
            return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), place)
        what = "lie outside the folders of the store" if place is None else f"are damaged ({reason})"
        line = f"trial {entry.id}: its files in the store {what}"
        if folder is None:
            self.note(f"{line}; the trial is skipped")
            return pending
        self.note(f"{line}; the files of the home folder are used")
        place = self.scratch / f"own-{entry.id}"
        place.mkdir(exist_ok=True)
        write_artifacts(folder, str(run.data.tags.get("dsd.state")), place)
        if (folder.root / "evaluations").is_dir():
            shutil.copytree(folder.root / "evaluations", place / "evaluations", dirs_exist_ok=True)
        return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), place)

    def _fetched(self, trial: str, run: Run) -> Path | None:
        """Local folder of a run's artifacts; None where they lie outside the store's folders."""
        folder = local_folder(run)
        if folder is not None:
            trusted = self.own or str(self.client.get_experiment(run.info.experiment_id).artifact_location)
            if not folder.resolve().is_relative_to(Path(unquote(urlparse(trusted).path)).resolve()):
                return None
            if folder.is_dir():
                return folder
        folder = self.scratch / trial
        folder.mkdir(parents=True, exist_ok=True)
        for item in self.client.list_artifacts(run.info.run_id):
            if item.path in _READ:
                self.client.download_artifacts(run.info.run_id, item.path, str(folder))
        return folder


def local_folder(run: Run) -> Path | None:
    """Local folder of a run's artifacts; None where they are on a server."""
    place = urlparse(run.info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def has_lost_artifacts(run: Run, folder: TrialFolder) -> bool:
    """Whether a run's complete artifacts are missing now. Asks no server."""
    place = local_folder(run)
    if place is None or "dsd.settled" not in run.data.tags or folder.description() is None:
        return False
    names = ("trial.json", "history.parquet", *(["final"] if run.data.tags.get("dsd.state") in ENDED else []))
    return not all((place / name).exists() for name in names)


def damage(folder: Path) -> str | None:
    """What is wrong with the files that a report needs; None where all are valid."""
    if not os.path.lexists(folder / "history.parquet") and not os.path.lexists(folder / "trial.json"):
        return None  # the trial failed before its data was loaded
    try:
        for name in ("history.parquet", "trial.json"):
            check_plain(folder / name)
        if TrialRecord.read(folder / "trial.json") is None:
            return "trial.json is not a JSON object"
        table = pq.ParquetFile(folder / "history.parquet")
        if table.schema_arrow.names[:4] != list(_COLUMNS):
            return "history.parquet has other columns"
        if table.metadata.num_rows > _MAX_ROWS:
            return f"history.parquet declares {table.metadata.num_rows:,} rows"
        table.read().validate(full=True)  # only a full validation detects text that is not UTF-8
        weights, counted = folder / "final" / "weights.safetensors", folder / "final" / "parameters.json"
        if os.path.lexists(weights):
            check_plain(weights)
            with safe_open(weights, framework="numpy"):
                pass
        if os.path.lexists(counted) and Parameters.known(counted) is None:
            return "final/parameters.json has no number of parameters"
    except (OSError, UnicodeDecodeError, pa.ArrowException, BadInput, SafetensorError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None
