"""Paths for sockets, of which Linux takes 107 characters."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.files.locks import locked

_PLAIN = re.compile(r"[A-Za-z0-9_./+=@,-]+")
"""What Ray takes in the path of its folder: it reads others as addresses, or as text of another encoding."""
_PREFIX, _LINK, _LOCK = "dsd-", "ray", "lock"


@contextlib.contextmanager
def short_path(folder: Path, room: int) -> Iterator[Path]:
    """The folder, or while the block lasts a link to it whose path is short and plain enough for sockets below it.

    Args:
        folder: is there.
        room: bytes that its path may have.
    """
    if len(os.fsencode(folder)) <= room and _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    # Our own folder: a fixed name under /tmp could be taken by another user, or by a sweep beside this one.
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) + len("/dsd-12345678/ray") <= room else "/tmp"
    _remove_left(Path(place), folder)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as private, locked(Path(private) / _LOCK):
        link = Path(private) / _LINK
        link.symlink_to(folder)
        yield link


def _remove_left(place: Path, folder: Path) -> None:
    """Remove the links to this folder that a killed process of this user left; nobody holds their locks any more."""
    for link in place.glob(f"{_PREFIX}*/{_LINK}"):
        with contextlib.suppress(OSError):  # another user's, or removed beside us
            if link.parent.lstat().st_uid != os.getuid() or os.readlink(link) != str(folder):
                continue
            with locked(link.parent / _LOCK, wait=False) as free:
                if free:
                    shutil.rmtree(link.parent)
