"""Advisory file locks that end with their process."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from dsd_lab.files.atomic import make_folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory file lock; without `wait`, yields False at once where it is taken."""
    make_folder(path.parent)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock; asking makes no file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
