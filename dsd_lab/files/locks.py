"""Advisory file locks, which the kernel releases when the process ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.files.atomic import make_folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory file lock. Yields whether it is held: without `wait`, False where another process holds it."""
    make_folder(path.parent)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Whether a live process holds a lock. Does not create the file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that concurrent checks do not see each other
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
