"""What a store holds, as its readers see it: a trial's run with its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities import Run

_READ = ("history.parquet", "trial.json", "final", "images")
"""Artifacts of a trial that a report reads."""


@dataclass
class StoredTrial:
    """What the store holds of a trial of a sweep."""

    entry: dict[str, Any]
    """The trial's row of the sweep's manifest."""
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path | None
    """Downloaded artifacts: history.parquet, trial.json, final/*.png; None where the trial never started."""


def local_folder(run: Run) -> Path | None:
    """Where the artifacts of a run lie on this machine; None where they are behind a server."""
    place = urlparse(run.info.artifact_uri)
    return Path(unquote(place.path)) if place.scheme in ("", "file") else None


def stored_trial(client: MlflowClient, entry: dict[str, Any], run: Run | None, scratch: Path) -> StoredTrial:
    """A trial from its run; artifacts are fetched below `scratch` where they are remote."""
    if run is None:
        return StoredTrial(entry, {"dsd.state": "pending"}, {}, None)
    folder = local_folder(run)
    if folder is None or not folder.is_dir():
        folder = scratch / entry["id"]
        folder.mkdir(parents=True, exist_ok=True)
        for item in client.list_artifacts(run.info.run_id):
            if item.path in _READ:
                client.download_artifacts(run.info.run_id, item.path, str(folder))
    return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), folder)


@dataclass(frozen=True)
class SweepRuns:
    """Where a sweep is in the store."""

    key: str
    experiment: str
    parent: str
    differing: list[str]
    trials: dict[tuple[str, str], Run]
    """Runs of trials by trial and code as the first pass found them, so that it asks once and not for each trial."""
    pointers: dict[str, Run]
    """The same of this sweep's pointers, by the run that they point to."""
    everywhere: list[str]
    """Experiments in which runs of this home may be."""
