"""Read untrusted files: never blocks on a pipe or device, and bounds the memory."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput

MAX_JSON = 64 * 2**20
"""Bytes of a JSON file; a record of 10,000 trials fits."""
MAX_VALUES = 4_000_000
"""Commas and brackets of a JSON file. Each can become an object of 100 bytes, so a limit on bytes is not enough."""


_CHUNK = 2**20


class BadFile(OSError):
    """A file that is refused: not a regular file, or larger than allowed.

    It is an `OSError`, so that readers treat it as an unreadable file. `strerror` is the reason.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def open_plain(path: str | Path) -> BufferedReader:
    """Open a regular file for reading, or a link to one.

    Raises:
        BadFile: it is a pipe, a socket, a device or a folder.
        OSError: as `open` does.
    """
    handle = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # O_NONBLOCK: a pipe without a writer would block
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadFile(path, "is not a regular file")
    return os.fdopen(handle, "rb")


def check_plain(path: str | Path) -> None:
    """Check a file before a library opens it by name.

    Raises:
        BadFile: as `open_plain`.
        OSError: as `open` does.
    """
    open_plain(path).close()


def read_plain(path: str | Path, most: int | None) -> bytes:
    """Read a regular file.

    Args:
        path: file to read.
        most: bytes that it may have; None: no limit.

    Raises:
        BadFile: it is not a regular file, or has more than `most` bytes.
        OSError: as `open` does.
    """
    with open_plain(path) as file:
        # A buffer of the limit's size could fail to allocate although the file itself fits.
        raw = file.read() if most is None else file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        while most is not None and len(raw) <= most and (more := file.read(min(_CHUNK, most + 1 - len(raw)))):
            raw += more
    if most is not None and len(raw) > most:
        raise BadFile(path, f"is larger than {most:,} bytes")
    return raw


def parse_json(raw: bytes) -> Any:
    """Parse JSON. Refuses NaN, infinity, more than `MAX_VALUES` values and unpaired surrogates.

    Raises:
        ValueError: it is not JSON in UTF-8.
        RecursionError: it is nested too deeply.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    text = raw.decode()
    found = json.loads(text, parse_constant=_no_constant)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()  # raises on an unpaired surrogate
    return found


def read_json(path: str | Path, most: int = MAX_JSON) -> Any:
    """Read and parse a JSON file.

    Raises:
        BadFile: as `read_plain`.
        ValueError: as `parse_json`.
        RecursionError: as `parse_json`.
        OSError: as `open` does.
    """
    return parse_json(read_plain(path, most))


def read_json_object(path: str | Path, most: int = MAX_JSON) -> dict[str, Any] | None:
    """The JSON object in a file; None where the file is missing, empty or damaged, as after a power cut.

    Raises:
        BadInput: it is not a regular file, or too large.
    """
    try:
        content = read_json(path, most)
    except BadFile as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
