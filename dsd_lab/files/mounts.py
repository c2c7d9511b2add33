"""Type of the file system that a folder is on: locks of SQLite need a local one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dsd_lab.files.database import sqlite_path

NETWORK = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    ]
)
"""Kernel names of network file systems."""


def network_filesystem(folder: Path) -> str | None:
    """Type of the network file system of a folder, existing or not; None where it is local or unknown."""
    import psutil

    whole, deepest, found = folder.resolve(), -1, None
    with contextlib.suppress(OSError):
        for mount in psutil.disk_partitions(all=True):
            point = Path(mount.mountpoint)
            if (
                whole.is_relative_to(point) and len(point.parts) >= deepest
            ):  # >=: the last mount at a path hides the others
                deepest, found = len(point.parts), mount.fstype
    return found if found in NETWORK else None


def shared_sqlite_warning(home: Path, uri: str | None) -> str | None:
    """A one-line warning where the MLflow store is an SQLite file on a network file system; else None.

    Args:
        home: the home folder, which holds the database where `uri` is None.
        uri: of the store.
    """
    database = home / "mlflow.db" if uri is None else sqlite_path(uri)
    if database is None:
        return None
    folder = database.parent
    kind = network_filesystem(folder)
    if kind is None:
        return None
    return (
        f"warning: {folder} is on a network file system ({kind}), where SQLite's locks are unreliable; the trials' own files "
        "are safe, but the MLflow store can be damaged if several machines write to it; use a server: --tracking-uri http://..."
    )
