"""Private temporary folders whose paths are short enough for sockets, of which Linux takes 107 characters."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.errors import NoResources
from dsd_lab.files.locks import is_held, locked

_PLAIN = re.compile(r"[A-Za-z0-9_./+=@,-]+")
"""What Ray takes in the path of its folder: it reads others as addresses, or as text of another encoding."""
_PREFIX, _LOCK, _MARK = "dsd-lab-", "lock", "held"
_NAME = len("/dsd-lab-12345678")
_SYSTEM = ("/tmp", "/var/tmp")
_FREE = 64 * 2**20
"""Bytes that a place must have free: Ray's logs, sockets and copies of what it runs."""
_PATIENCE = 5.0
"""Seconds that processes which used a folder are given to end."""


@contextlib.contextmanager
def private_folder(room: int) -> Iterator[Path]:
    """A folder (mode 0700) that is removed at the end, together with those that killed processes of this user left.

    Args:
        room: bytes that its path may have.

    Raises:
        NoResources: no place for temporary files can be used.
    """
    folder = _new_folder(room)
    try:
        with locked(folder / _LOCK):
            (folder / _MARK).touch()  # from here on, a lock that nobody holds means that the process was killed
            yield folder
    finally:
        until = time.monotonic() + _PATIENCE
        while not _removed(folder) and time.monotonic() < until:  # a process that ends may still have written there
            time.sleep(0.1)


def _new_folder(room: int) -> Path:
    reasons = []
    for place in _places():
        _remove_left(Path(place))
        if len(os.fsencode(place)) + _NAME > room or not _PLAIN.fullmatch(place):
            reasons.append(f"{place}: its path is too long, or has other characters than sockets can")
            continue
        try:
            if shutil.disk_usage(place).free < _FREE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
    raise NoResources(f"no place for Ray's temporary files ({'; '.join(reasons)}); set TMPDIR to another")


def _places() -> list[str]:
    """The user's place for temporary files, which may be full or gone, and the system's."""
    with contextlib.suppress(OSError):
        return list(dict.fromkeys([tempfile.gettempdir(), *_SYSTEM]))
    return list(_SYSTEM)


def _remove_left(place: Path) -> None:
    """Remove this user's folders whose process was killed: they have our mark, and nobody holds their lock."""
    for mark in place.glob(f"{_PREFIX}????????/{_MARK}"):
        with contextlib.suppress(OSError):  # another user's, or removed meanwhile
            folder = mark.parent
            ours = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if ours and not is_held(folder / _LOCK):
                _removed(folder)


def _removed(folder: Path) -> bool:
    """Remove a folder, its mark last, so that what cannot be removed yet is still known to be ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    if any(path.is_dir() for path in folder.iterdir()):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
