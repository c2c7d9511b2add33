"""Advisory file locks, which the kernel releases when the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.files.atomic import make_folder
from dsd_lab.files.bounded import BadFile

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A link is not followed, and a pipe in the place of a lock is not waited for."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory file lock; without `wait`, yields False at once where it is taken.

    Raises:
        BadFile: a link or a pipe is in its place.
    """
    make_folder(path.parent)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise BadFile(path, "is not a regular file") from None
    with os.fdopen(handle, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path | str, folder: int | None = None) -> bool:
    """Whether a living process holds a lock; asking makes no file, and what is no regular file nobody holds.

    Args:
        path: of the lock.
        folder: handle of an open folder that the path begins in.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
