"""A home folder that was moved or copied: its database names the places of artifacts absolutely, and MLflow cannot change them.

So the database is changed, before anything is read from it or written: else results would be looked for, and new
ones written, where the folder lay before.
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
    """Point a home's experiments and runs to where its artifacts lie now; returns how many experiments had moved.

    Args:
        database: MLflow's SQLite file; one that is missing or holds something else is left as it is.
        root: the home folder.
        home_id: of the home folder.
        own: whether what says of no home that it is its own is this one's.
    """
    with contextlib.suppress(sqlite3.Error):  # MLflow itself says what is wrong with a file that is none
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
    """(experiment, old place, new place) of this home's experiments whose artifacts are said to lie elsewhere."""
    tags = dict(database.execute("select experiment_id, value from experiment_tags where key = 'dsd.home'").fetchall())
    found = []
    for experiment, location in database.execute("select experiment_id, artifact_location from experiments"):
        before, folder, _ = str(location or "").rpartition(f"/{FOLDER}/")
        ours = tags.get(experiment, home_id if own else None) == home_id
        old = f"{before}/{FOLDER}"
        if folder and ours and before.startswith("file:") and old != new:
            found.append((experiment, old, new))
    return found
