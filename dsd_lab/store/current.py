"""Remembers what a store has, so that a finished sweep does not open MLflow.

Only for the database in the home folder: the contents of another store are known only by asking it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.store.uri import chosen_uri, own_uri

_FILE = "stored.json"
"""In the sweep's folder. The next sync writes it again if it is lost."""


@contextlib.contextmanager
def noted(home: Home, manifests: list[Manifest], uri: str | None = None) -> Iterator[None]:
    """Around a sync of sweeps: remember that the store is up to date, if no file of theirs changed meanwhile."""
    before = [_files(home, manifest) for manifest in manifests]
    yield
    database = _database(home, uri)
    for manifest, files in zip(manifests, before, strict=True):
        if database is not None and _files(home, manifest) == files:
            write_json(home.sweep_folder(manifest.key) / _FILE, {"files": files, "database": database})


def is_current(home: Home, key: str, uri: str | None = None) -> bool:
    """Whether neither the database nor a file of a sweep's trials changed since the last sync.

    MLflow's artifacts are not looked at: those that were removed from its folder are missed by a sync only, as that of
    `dsd-lab report` or of a sweep with an unfinished trial.
    """
    manifest, database = home.manifests().get(key), _database(home, uri)
    if manifest is None or database is None:
        return False
    known = read_cache(home.sweep_folder(key) / _FILE)
    return known.get("database") == database and known.get("files") == _files(home, manifest)


def _database(home: Home, uri: str | None) -> list[int] | None:
    """Size and time of the home's database; None for another store, or during a write."""
    own, file = own_uri(home.root), home.root / "mlflow.db"
    writing = Path(f"{file}-journal").exists()
    return None if writing or (chosen_uri(uri) or own) != own else _stat(file)


def _files(home: Home, manifest: Manifest) -> str:
    """A digest of what a sync reads: the spec, and sizes and times of the trials' files."""
    seen: list[object] = [sorted(manifest.ids), manifest.spec, manifest.set]
    for trial in sorted(manifest.ids):
        folder = home.trial(trial)
        files = [folder.spool, *(folder.root / name for name in ("status.json", "trial.json"))]
        seen += [(file.name, _stat(file)) for file in [*files, *sorted((folder.root / "evaluations").glob("*"))]]
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()


def _stat(file: Path) -> list[int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
