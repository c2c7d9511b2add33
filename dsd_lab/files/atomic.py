"""Atomic writes: a file is either complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from dsd_lab.files.bounded import read_json

PRIVATE = 0o600
"""Mode of a file that can hold a secret, such as a traceback. All other files follow the umask."""


def write_atomic(path: Path, content: bytes | str, durable: bool = False, mode: int = 0o666) -> None:
    """Replace `path` atomically.

    Args:
        path: its folder must exist.
        content: text is written as UTF-8.
        durable: also survive a power cut, at the cost of flushing the file and its folder.
        mode: of the file, before the umask.
    """
    raw = content.encode() if isinstance(content, str) else content
    handle, temporary = create_beside(path, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def create_beside(path: Path, mode: int = 0o666) -> tuple[int, str]:
    """Create a temporary file in the folder of `path`, to be renamed to `path`. Returns its handle and name.

    `mkstemp` is not used: its files are readable by the user alone, but a home folder may be shared by a group.
    """
    temporary = f"{path.parent}/.{path.name}.{secrets.token_hex(4)}"
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), temporary


def write_json(path: Path, content: Any, durable: bool = False) -> None:
    """Write JSON atomically. NaN and infinity raise ValueError, since JSON has neither."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n", durable)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that renames in it survive a power cut."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents; their names survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def read_cache(path: Path) -> dict[str, Any]:
    """The JSON object of a cache file; empty where the file is missing or damaged."""
    try:
        known = read_json(path)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. Links are not followed."""
    total = 0
    for file in [path] if path.is_symlink() or not path.is_dir() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
    return total
