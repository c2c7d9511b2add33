"""What a store holds, as its readers see it: a trial's run with its files. They may be torn, or lie in a place of others."""

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
_MOST_ROWS = 50_000_000
"""Of a trial's history: a gigabyte."""
_READ = ("history.parquet", "trial.json", "final", "images", "evaluations")
"""Artifacts of a trial that a report reads."""


@dataclass
class StoredTrial:
    """What the store holds of a trial of a sweep."""

    entry: Entry
    """The trial's row of the sweep's manifest."""
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path | None
    """Downloaded artifacts: history.parquet, trial.json, final/*.png; None where the trial never started."""


@dataclass(frozen=True)
class Reader:
    """Reads trials from their runs.

    Args:
        client: of the store.
        scratch: where artifacts are fetched to.
        own: address of the folder of all artifacts, where the store is the home's own; None of another, in which the
            artifacts of an experiment lie where its maker put them.
        write_anew: called with a run and its trial's folder, where the store has lost the run's artifacts.
        note: called with one line about what is passed over.
    """

    client: MlflowClient
    scratch: Path
    own: str | None
    write_anew: Callable[[Run, TrialFolder], None]
    note: Callable[[str], None]

    def stored(self, entry: Entry, run: Run | None, folder: TrialFolder | None) -> StoredTrial:
        """A trial from its run; pending where there is no run, or where it cannot be read.

        Args:
            entry: the trial's row of a manifest.
            run: of the trial.
            folder: of the trial in this home, which stands in for artifacts that are lost or damaged.
        """
        pending = StoredTrial(entry, {"dsd.state": "pending"}, {}, None)
        if run is None:
            return pending
        place = self._fetched(entry.id, run)
        started = folder is not None and folder.description() is not None and not folder.is_locked()
        if folder is not None and started and place is not None and not (place / "history.parquet").exists():
            self.write_anew(run, folder)
            run = self.client.get_run(run.info.run_id)
            place = self._fetched(entry.id, run)
        if place is not None and not (reason := damage(place)):
            return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), place)
        what = "lie outside the folders of the store" if place is None else f"are damaged ({reason})"
        line = f"trial {entry.id}: its files in the store {what}"
        if folder is None:
            self.note(f"{line}; it is passed over")
            return pending
        self.note(f"{line}; those of the home folder are shown")
        place = self.scratch / f"own-{entry.id}"
        place.mkdir(exist_ok=True)
        write_artifacts(folder, str(run.data.tags.get("dsd.state")), place)
        if (folder.root / "evaluations").is_dir():
            shutil.copytree(folder.root / "evaluations", place / "evaluations", dirs_exist_ok=True)
        return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), place)

    def _fetched(self, trial: str, run: Run) -> Path | None:
        """Where a run's artifacts are on this machine; None where they are in a place of others."""
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
    """Where the artifacts of a run lie on this machine; None where they are behind a server."""
    place = urlparse(run.info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def has_lost_artifacts(run: Run, folder: TrialFolder) -> bool:
    """Whether a run that had all of its trial's files has them no more; asks no server."""
    place = local_folder(run)
    if place is None or "dsd.settled" not in run.data.tags or folder.description() is None:
        return False
    names = ("trial.json", "history.parquet", *(["final"] if run.data.tags.get("dsd.state") in ENDED else []))
    return not all((place / name).exists() for name in names)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a trial's run that a report cannot do without; None where nothing is."""
    if not os.path.lexists(folder / "history.parquet") and not os.path.lexists(folder / "trial.json"):
        return None  # it failed before its data was loaded
    try:
        for name in ("history.parquet", "trial.json"):
            check_plain(folder / name)
        if TrialRecord.read(folder / "trial.json") is None:
            return "trial.json is no JSON object"
        table = pq.ParquetFile(folder / "history.parquet")
        if table.schema_arrow.names[:4] != list(_COLUMNS):
            return "history.parquet has other columns"
        if table.metadata.num_rows > _MOST_ROWS:
            return f"history.parquet declares {table.metadata.num_rows:,} rows"
        table.read().validate(full=True)  # text that is no UTF-8 is found by nothing less
        weights, counted = folder / "final" / "weights.safetensors", folder / "final" / "parameters.json"
        if os.path.lexists(weights):
            check_plain(weights)
            with safe_open(weights, framework="numpy"):
                pass
        if os.path.lexists(counted) and Parameters.known(counted) is None:
            return "final/parameters.json holds no number of parameters"
    except (OSError, UnicodeDecodeError, pa.ArrowException, BadInput, SafetensorError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return None
