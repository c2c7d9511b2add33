"""What a sweep has come to in its home folder and in its store, to compare one that was disturbed with one that was not."""

import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from sweeping import events

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.home.home import Home

HISTORY = (
    "dsd.seconds",
    "dsd.attempt",
    "dsd.settled",
    "dsd.git_dirty",
    "mlflow.source.git.commit",
    "mlflow.parentRunId",
    "dsd.home",
    "dsd.command",
)
"""Tags that tell how a result came about, and not what it is."""


def record_of(home: Home, trial: str) -> tuple[Any, ...]:
    """What a trial has come to: state, step, weights, records, pictures."""
    folder = home.trial(trial)
    newest = list_checkpoints(folder.checkpoints)[:1] + list_checkpoints(folder.root / "crash")[:1]
    digests = [json.loads((path / "manifest.json").read_text())["sha256"] for path in newest]
    pictures = {path.name: path.read_bytes() for path in folder.images.glob("*.png")}
    return folder.state(), folder.status().step, digests, events(home, trial), pictures


def stored_trials(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All runs of each trial in the store of a folder, a home's own or a server's: state, tags, parameters, metrics with values, files."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        tags: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for run, key, value in database.execute("select run_uuid, key, value from tags"):
            tags[run][key] = value
        parameters, metrics = defaultdict(list), defaultdict(list)
        for run, *row in database.execute("select run_uuid, key, value from params"):
            parameters[run].append(tuple(row))
        for run, *row in database.execute(
            "select run_uuid, key, step, value, is_nan from metrics where key not like 'machine/%'"
        ):
            metrics[run].append(tuple(row))
        runs = database.execute("select run_uuid, status, artifact_uri from runs").fetchall()
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for run, status, place in runs:
        if tags[run].get("dsd.kind") == "trial":
            found[tags[run]["dsd.trial"]].append(
                {
                    "status": status,
                    "tags": {k: v for k, v in tags[run].items() if k not in HISTORY},
                    "parameters": sorted(parameters[run]),
                    "metrics": sorted(metrics[run]),
                    "files": _files(_place(folder, place)),
                }
            )
    return dict(found)


def _place(folder: Path, uri: str) -> Path:
    """Where a run's files lie: an address of the server is below its folder of files."""
    path = unquote(urlparse(uri).path)
    return Path(path) if uri.startswith(("file:", "/")) else folder / "files" / path.lstrip("/")


def _files(place: Path) -> dict[str, list[bytes]]:
    """Pictures, final pictures and final weights. MLflow's names of pictures end in a time and a random part, which are left out."""
    kept = [p for p in place.rglob("*") if p.suffix == ".png" or p.name == "weights.safetensors"]
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    for path in kept:
        found[str(path.relative_to(place)).replace("+", "%").partition("%timestamp%")[0]].append(path.read_bytes())
    return dict(found)
