"""Write and delete below a folder without following links.

Each folder is opened by name with `O_NOFOLLOW`, relative to the handle of its parent. A link that another process
puts into the path between a check and its use is therefore not followed either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from dsd_lab.files.sha256 import sha256_in

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def folder_below(root: Path, parts: tuple[str, ...], make: bool = False) -> Iterator[int]:
    """Open the folder `root`/`parts` without following a link below `root`. Yields its handle.

    Args:
        root: existing folder; may itself be a link.
        parts: names of the folders, outermost first.
        make: create missing folders.

    Raises:
        OSError: a folder is missing, is a link, or is not a folder.
    """
    handle = os.open(root, _FOLDER)
    try:
        for name in parts:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=handle)
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def digest_in(folder: int, name: str) -> str | None:
    """SHA-256 of a regular file in an open folder; None where it is missing or a link."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        return sha256_in(file) if stat.S_ISREG(os.fstat(handle).st_mode) else None


def put_in(folder: int, name: str, content: BinaryIO, mode: int) -> None:
    """Write a file into an open folder atomically. A link of that name is replaced, not followed.

    Args:
        folder: its handle.
        name: of the file.
        content: is copied.
        mode: of the file, regardless of the umask.
    """
    temporary = f".{name}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
            shutil.copyfileobj(content, file)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def remove_in(folder: int, name: str) -> None:
    """Delete a file, a link (not its target) or a folder tree in an open folder. Does nothing where it is missing."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=folder)  # which follows no link either
        else:
            os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def remove_below(root: Path, path: PurePath) -> bool:
    """Delete a path below a folder without following links. Returns False where a link is in the way."""
    *parts, name = path.relative_to(root).parts
    try:
        with folder_below(root, tuple(parts)) as folder:
            remove_in(folder, name)
    except (FileNotFoundError, NotADirectoryError):
        return not os.path.lexists(path)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link
            return False
        raise
    return True
