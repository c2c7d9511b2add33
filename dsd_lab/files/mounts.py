"""What kind of file system a folder lies on, where that changes what can be promised of the files in it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePath

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
_MOUNTS = Path("/proc/self/mountinfo")
_SQLITE = "sqlite:///"


def network_filesystem(folder: Path) -> str | None:
    """The type of the network file system that a folder lies on, or is to lie on; None: it is local, or nobody can tell."""
    with contextlib.suppress(OSError):
        found = filesystem_of(folder.resolve(), _MOUNTS.read_text())
        return found if found in NETWORK else None
    return None


def filesystem_of(folder: PurePath, mounts: str) -> str | None:
    """The type of the file system of a folder, whose path is absolute, among Linux's mounts (`proc(5)`, mountinfo)."""
    deepest, found = -1, None
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5 or not after:
            continue
        point = PurePath(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        if folder.is_relative_to(point) and len(point.parts) >= deepest:  # the last of those at one place is seen
            deepest, found = len(point.parts), after.split()[0]
    return found


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
