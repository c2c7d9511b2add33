"""Private temporary folders with paths short enough for Unix sockets (107 characters on Linux)."""

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
from dsd_lab.files.below import folder_below
from dsd_lab.files.locks import is_held, locked

_PLAIN = re.compile(r"[A-Za-z0-9_./+=@,-]+")
"""Characters that Ray accepts in the path of its folder. It misreads others as addresses or another encoding."""
_PREFIX, _LOCK, _MARK = "dsd-lab-", "lock", "held"
_NAME = len("/dsd-lab-12345678")
_SYSTEM = ("/tmp", "/var/tmp")
_FREE = 64 * 2**20
"""Bytes that must be free: Ray's logs, sockets and copies of what it runs."""
_REMOVE_SECONDS = 5.0
"""How long to wait for processes that still use a folder to end."""


@contextlib.contextmanager
def private_folder(room: int) -> Iterator[Path]:
    """Make a folder (mode 0700) and remove it at the end. Also removes folders that killed processes of this user left.

    Args:
        room: maximum length of its path in bytes.

    Raises:
        NoResources: there is no usable place for temporary files.
    """
    folder = _new_folder(room)
    try:
        with locked(folder / _LOCK):
            (folder / _MARK).touch()  # from here on, a free lock means that the process was killed
            yield folder
    finally:
        until = time.monotonic() + _REMOVE_SECONDS
        while not _removed(folder) and time.monotonic() < until:  # an ending process may still write there
            time.sleep(0.1)


def _new_folder(room: int) -> Path:
    reasons = []
    for place in _places():
        _remove_left(Path(place))
        if len(os.fsencode(place)) + _NAME > room or not _PLAIN.fullmatch(place):
            reasons.append(f"{place}: its path is too long or has characters that sockets do not allow")
            continue
        try:
            if shutil.disk_usage(place).free < _FREE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror}")
    raise NoResources(f"no place for Ray's temporary files ({'; '.join(reasons)}); set TMPDIR to a usable folder")


def _places() -> list[str]:
    """The user's folder for temporary files, which may be full or missing, and the system's."""
    with contextlib.suppress(OSError):
        return list(dict.fromkeys([tempfile.gettempdir(), *_SYSTEM]))
    return list(_SYSTEM)


def _remove_left(place: Path) -> None:
    """Remove this user's folders whose process was killed: they have our mark, and nobody holds their lock.

    Everybody can write to the place: another user may put a link where a folder was. What is looked at and what is
    removed is therefore one open folder.
    """
    for mark in place.glob(f"{_PREFIX}????????/{_MARK}"):
        # Suppressed: a link, another user's, or removed meanwhile.
        with contextlib.suppress(OSError), folder_below(place, (mark.parent.name,)) as folder:
            ours = os.fstat(folder).st_uid == os.getuid() and _MARK in os.listdir(folder)
            if ours and not is_held(_LOCK, folder):
                _empty(folder)
                mark.parent.rmdir()  # fails on a link that has taken its place


def _removed(folder: Path) -> bool:
    """Remove a folder; False where something in it cannot be removed yet."""
    try:
        with folder_below(folder.parent, (folder.name,)) as handle:
            _empty(handle)
        folder.rmdir()
    except OSError:
        return not os.path.lexists(folder)
    return True


def _empty(folder: int) -> None:
    """Remove what is in an open folder, its mark last, so that what cannot be removed yet is still known to be ours."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
    for name in folders:
        shutil.rmtree(name, dir_fd=folder)
    for name in sorted(files, key=lambda name: name == _MARK):
        os.unlink(name, dir_fd=folder)
