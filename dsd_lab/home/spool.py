"""Read a trial's spool. Separate from the writer, so that reading does not import torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, open_plain, read_plain
from dsd_lab.files.image_files import DamagedImage, open_grid
from dsd_lab.home.record_types import refuse_newer
from dsd_lab.home.trial_records import SpoolLine


def read_spool(path: Path) -> Iterator[SpoolLine]:
    """Complete lines of a spool; a partly written last line is left out.

    Raises:
        BadInput: a line is damaged, or newer than this program.
    """
    return parsed_lines(complete_lines(path), path)


def parsed_lines(lines: list[bytes], path: Path) -> Iterator[SpoolLine]:
    """Parse lines of a spool.

    Raises:
        BadInput: as `read_spool`.
    """
    for number, line in enumerate(lines, 1):
        entry = _parsed(line, path)
        if entry is None:
            raise BadInput(f"{path}:{number}: is damaged; remove the trial's folder to retrain the trial")
        yield entry


def _parsed(line: bytes, path: Path) -> SpoolLine | None:
    """Parse a line; None where it is damaged."""
    try:
        return SpoolLine.model_validate_json(line)
    except ValidationError:
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
            refuse_newer(content if isinstance(content, dict) else {}, str(path))  # a newer format may look different
        return None


def sound_lines(path: Path, images: Path | None = None) -> int:
    """Number of leading lines that are valid and whose images are. A power cut damages only the end.

    Args:
        path: the spool.
        images: folder of its images; None skips their check. A missing image counts as removed by the user.

    Raises:
        BadInput: a line is newer than this program.
    """
    lines = complete_lines(path)
    for number, line in enumerate(lines):
        entry = _parsed(line, path)
        if entry is None:
            return number
        pictures = [] if images is None else [images / name for name in entry.files]
        if not all(is_whole_picture(picture) for picture in pictures if picture.exists()):
            return number
    return len(lines)


class SpoolTail:
    """Follow a spool while a trial writes it. A resumed trial truncates the spool and continues from there.

    Args:
        path: the spool; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._next, self._last = path, 0, 0, 0.0

    def read(self) -> list[SpoolLine]:
        """Entries written since the last call, in order; none while a line is damaged."""
        entries = self._new()
        if entries is None:  # truncated: all that follows is new
            self._at = self._next = 0
            entries = [entry for entry in self._new() or [] if entry.time > self._last]
        self._last = entries[-1].time if entries else self._last
        return entries

    def _new(self) -> list[SpoolLine] | None:
        """Entries after the last one read; None if the file was truncated before that."""
        try:
            with open_plain(self._path) as file:
                if file.seek(0, os.SEEK_END) < self._at:
                    return None
                file.seek(self._at)
                raw = file.read()
        except FileNotFoundError:
            return None if self._at else []
        except BadFile as error:
            raise BadInput(f"{self._path}: {error.strerror}") from None
        whole = raw[: raw.rfind(b"\n") + 1]
        entries: list[SpoolLine] = []
        for line in whole.split(b"\n")[:-1]:
            entry = _parsed(line, self._path)
            if entry is None or entry.n != self._next + len(entries):
                return None
            entries.append(entry)
        self._at, self._next = self._at + len(whole), self._next + len(entries)
        return entries


def is_whole_picture(path: Path) -> bool:
    """Whether a file is a PNG with valid checksums; after a power cut it can be empty or torn."""
    try:
        open_grid(path)
    except DamagedImage:
        return False
    return True


def complete_lines(path: Path) -> list[bytes]:
    """Raw complete lines; none where the file is missing."""
    try:
        raw = read_plain(path, None)  # no limit: the trial's own size bounds it
    except FileNotFoundError:
        return []
    except BadFile as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]
