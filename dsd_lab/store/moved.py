"""Adapt the database of a home folder that was moved or copied.

MLflow stores absolute paths of artifacts and cannot change them. They are changed in the database before it is read
or written; otherwise MLflow would use the old folder.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

FOLDER = "mlartifacts"
"""Folder of artifacts in a home folder."""


def artifacts_uri(root: Path) -> str:
    """URI of the artifacts of a home folder."""
    return (root.resolve() / FOLDER).as_uri()


def relocate(database: Path, root: Path, home_id: str, own: bool) -> int:
    """Point a home's experiments and runs to its present artifacts folder. Returns the number of moved experiments.

    Args:
        database: MLflow's SQLite file. A missing or foreign file is not touched.
        root: the home folder.
        home_id: of the home folder.
        own: whether experiments without a home belong to this home.
    """
    with contextlib.suppress(sqlite3.Error):  # MLflow itself reports a file that is not a database
        address = f"file:{quote(str(database.resolve()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as reading:
            moved = _moved(reading, artifacts_uri(root), home_id, own)
        if not moved:
            return 0
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as writing, writing:
            for experiment, old, new in moved:
                for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    writing.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where experiment_id = ? and substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, experiment, len(old) + 1, f"{old}/"),
                    )
        return len(moved)
    return 0


def _moved(database: sqlite3.Connection, new: str, home_id: str, own: bool) -> list[tuple[int, str, str]]:
    """(experiment, old path, new path) of this home's experiments whose artifacts are recorded elsewhere."""
    tags = dict(database.execute("select experiment_id, value from experiment_tags where key = 'dsd.home'").fetchall())
    found = []
    for experiment, location in database.execute("select experiment_id, artifact_location from experiments"):
        before, folder, _ = str(location or "").rpartition(f"/{FOLDER}/")
        ours = tags.get(experiment, home_id if own else None) == home_id
        old = f"{before}/{FOLDER}"
        if folder and ours and before.startswith("file:") and old != new:
            found.append((experiment, old, new))
    return found
