"""Whether the store has all that a sweep has recorded, known from files alone: a finished sweep need not open MLflow.

Only of the database in the home folder: of another store nothing is known without asking it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.store.uri import chosen_uri, own_uri

_FILE = "stored.json"
"""In the sweep's folder. It may be lost at any time: the next sync makes it again."""


def note_current(home: Home, manifests: list[Manifest], uri: str | None = None) -> None:
    """Remember that the store has just been brought up to date with sweeps."""
    for manifest in manifests:
        if (state := _state(home, manifest, uri)) is not None:
            write_json(home.sweep_folder(manifest.key) / _FILE, {"state": state})


def is_current(home: Home, key: str, uri: str | None = None) -> bool:
    """Whether neither the database nor a file of a sweep's trials has changed since."""
    manifest = home.manifests().get(key)
    state = None if manifest is None else _state(home, manifest, uri)
    return state is not None and read_cache(home.sweep_folder(key) / _FILE).get("state") == state


def _state(home: Home, manifest: Manifest, uri: str | None) -> str | None:
    """A digest of what a sync compares; None: a sync is needed to know."""
    own = own_uri(home.root)
    database = home.root / "mlflow.db"
    if (chosen_uri(uri) or own) != own or not database.is_file() or Path(f"{database}-journal").exists():
        return None
    seen: list[object] = [_stat(database), sorted(manifest.ids), manifest.spec, manifest.set]
    for trial in sorted(manifest.ids):
        folder = home.trial(trial)
        seen += [_stat(file) for file in (folder.spool, folder.root / "status.json", folder.root / "trial.json")]
        seen += [_stat(file) for file in sorted((folder.root / "evaluations").glob("*"))]
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()


def _stat(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
