"""Advisory file locks that end with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from dsd_lab.errors import NoResources
from dsd_lab.files.atomic import make_folder
from dsd_lab.files.bounded import BadFile
from dsd_lab.files.printable import say

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A link is not followed, and a pipe in the place of a lock is not waited for."""
_LOOK_EVERY, _TELL_AFTER = 0.05, 10.0
"""Seconds between looks at a lock that another process holds, and after which the user is told of it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer, such as NFS without its lock service and Lustre mounted without `flock`."""
_WAITERS: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("waiters", default=())


@contextlib.contextmanager
def while_waiting(call: Callable[[], None]) -> Iterator[None]:
    """Within the block, the function is called for as long as this thread waits for a lock."""
    token = _WAITERS.set((*_WAITERS.get(), call))
    try:
        yield
    finally:
        _WAITERS.reset(token)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory file lock; without `wait`, yields False at once where it is taken.

    Raises:
        BadFile: a link or a pipe is in its place.
        NoResources: the file system has no locks.
    """
    make_folder(path.parent)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise BadFile(path, "is not a regular file") from None
    with os.fdopen(handle, "ab"):
        held = _take(handle, path, fcntl.LOCK_EX)
        began, told = time.monotonic(), False
        while wait and not held:
            for call in _WAITERS.get():
                call()
            if not told and time.monotonic() - began >= _TELL_AFTER:
                told = True
                say(f"dsd-lab: waits for another process, which holds {path}", error=True)
            time.sleep(_LOOK_EVERY)
            held = _take(handle, path, fcntl.LOCK_EX)
        yield held


def is_held(path: Path | str, folder: int | None = None) -> bool:
    """Whether a living process holds a lock; asking makes no file, and what is no regular file nobody holds.

    Args:
        path: of the lock.
        folder: handle of an open folder that the path begins in.

    Raises:
        NoResources: the file system has no locks.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        return False
    try:
        return not _take(handle, path, fcntl.LOCK_SH)  # shared: two that ask do not see each other
    finally:
        os.close(handle)


def _take(handle: int, path: Path | str, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise NoResources(
            f"{path}: this file system has no file locks ({error.strerror}), without which two processes could train one "
            "trial; mount it with locks, or name a folder of another with --home"
        ) from None
    return True
