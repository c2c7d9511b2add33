"""Files that are either complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes | str, durable: bool = False) -> None:
    """Replace `path` in one step.

    Args:
        path: its folder must exist.
        content: text is written as UTF-8.
        durable: also survive a power cut (costs a disk flush of the file and of its folder).
    """
    raw = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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


def write_json(path: Path, content: Any, durable: bool = False) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n", durable)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_cache(path: Path) -> dict[str, Any]:
    """The JSON object of a cache; one that is missing or damaged is empty."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count as what they are."""
    total = 0
    for file in [path] if path.is_symlink() or not path.is_dir() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
    return total
