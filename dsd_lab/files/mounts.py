"""What kind of file system a folder lies on, where that changes what can be promised of the files in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
"""Types, as the kernel names them, of file systems that other machines may write to."""
_SQLITE = "sqlite:///"


def network_filesystem(folder: Path) -> str | None:
    """The type of the network file system that a folder lies on, or is to lie on; None: it is local, or nobody can tell."""
    import psutil

    whole, deepest, found = folder.resolve(), -1, None
    with contextlib.suppress(OSError):
        for mount in psutil.disk_partitions(all=True):
            point = Path(mount.mountpoint)
            if whole.is_relative_to(point) and len(point.parts) >= deepest:  # the last of those at one place is seen
                deepest, found = len(point.parts), mount.fstype
    return found if found in NETWORK else None


def shared_sqlite_warning(home: Path, uri: str | None) -> str | None:
    """One line where a store in SQLite lies on a network file system, whose locks SQLite cannot rely on.

    Args:
        home: the home folder, which has the database where no address is given.
        uri: of the store.
    """
    if uri is None:
        folder = home
    elif uri.startswith(_SQLITE):
        folder = Path(uri.removeprefix(_SQLITE)).parent
    else:
        return None
    kind = network_filesystem(folder)
    if kind is None:
        return None
    return (
        f"warning: {folder} is on a network file system ({kind}), on which SQLite can lose its locks: the trials' own files are "
        "safe there, the store is not where several machines write; name a server with --tracking-uri http://..."
    )
