"""Power cuts without a power switch: what a disk may hold at any moment, from the order of writes, names and flushes.

A disk guarantees what `fsync` has flushed and no more. Three disks that a file system is allowed to leave are
made at every change of a name and at every flush:

- `strict`: names as their folder was last flushed, contents as their file was last flushed;
- `empty`: all names as they are now, and nothing of a content that was not flushed;
- `torn`: all names, and of a content that was not flushed a part, followed by zeros.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Image = dict[str, bytes | None]
"""Content by path; None for a folder."""
KINDS = ("strict", "empty", "torn")


class Disk:
    """Follows a folder while its `with` block of `watched` lasts, and keeps every different image of it.

    Args:
        root: the folder; it stands for a whole disk and is there from the start.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {os.stat(root).st_ino: {}}
        self._held: list[int] = []
        """Handles of all that was flushed, so that no number of a file is given to another."""
        self.images: dict[str, list[Image]] = {kind: [] for kind in KINDS}

    @contextlib.contextmanager
    def watched(self) -> Iterator[Disk]:
        """Look before every change of a name and after every flush that this process makes."""
        with contextlib.ExitStack() as stack:
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                stack.enter_context(mock.patch.object(os, name, self._looked_before(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "fsync", self._flushed(os.fsync)))
            yield self
            self.look()
        for handle in self._held:
            os.close(handle)

    def _looked_before(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            self.look()
            return change(*arguments, **options)

        return changed

    def _flushed(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def flushed(handle: int) -> None:
            self.look()
            fsync(handle)
            place = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if not place.is_relative_to(self._root):
                return
            number = os.fstat(handle).st_ino
            self._held.append(os.open(place, os.O_RDONLY))
            if place.is_dir():
                self._folders[number] = {entry.name: entry.inode() for entry in os.scandir(place)}
            else:
                self._files[number] = place.read_bytes()
            self.look()

        return flushed

    def look(self) -> None:
        """Keep the images of this moment, where they differ from those of the last."""
        numbers = {p.stat().st_ino: p for p in self._root.rglob("*")}
        for kind in KINDS:
            image: Image = {}
            self._fill(image, kind, os.stat(self._root).st_ino, "", numbers)
            if image not in self.images[kind][-1:]:
                self.images[kind].append(image)

    def _fill(self, image: Image, kind: str, number: int, at: str, numbers: dict[int, Path]) -> None:
        if kind == "strict":
            names = self._folders.get(number, {})
        else:
            place = numbers.get(number, self._root)
            names = {entry.name: entry.inode() for entry in os.scandir(place)} if place.is_dir() else {}
        for name, inode in names.items():
            path, now = f"{at}{name}", numbers.get(inode)
            if inode in self._folders or (now is not None and now.is_dir()):
                image[path] = None
                self._fill(image, kind, inode, f"{path}/", numbers)
            else:
                content = self._files.get(inode, b"")
                more = now.read_bytes()[len(content) :] if kind == "torn" and now is not None else b""
                image[path] = content + more[: len(more) // 2] + bytes(len(more) - len(more) // 2)


def restore(image: Image, target: Path) -> None:
    """Write an image below a folder."""
    target.mkdir(parents=True)
    for name, content in sorted(image.items()):
        if content is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)
