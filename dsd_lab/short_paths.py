"""Paths for sockets, of which Linux takes 107 characters."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_path(folder: Path, room: int) -> Iterator[Path]:
    """The folder, or while the block lasts a link to it whose path is short enough for sockets below it.

    Args:
        folder: is there.
        room: bytes that its path may have.
    """
    if len(os.fsencode(folder)) <= room:
        yield folder
        return
    # Our own folder: a fixed name under /tmp could be taken by another user, or by a sweep beside this one.
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) + len("/dsd-12345678/ray") <= room else "/tmp"
    with tempfile.TemporaryDirectory(prefix="dsd-", dir=place) as private:
        link = Path(private) / "ray"
        link.symlink_to(folder)
        yield link
