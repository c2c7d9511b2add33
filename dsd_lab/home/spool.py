"""Reading a trial's spool: apart from the writer, so that nothing that only reads has to import torch."""

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
    """Complete lines of a spool; a torn last line is not there yet.

    Raises:
        BadInput: a line is damaged, or newer than this program.
    """
    return parsed_lines(complete_lines(path), path)


def parsed_lines(lines: list[bytes], path: Path) -> Iterator[SpoolLine]:
    """What lines of a spool say.

    Raises:
        BadInput: as `read_spool`.
    """
    for number, line in enumerate(lines, 1):
        entry = _parsed(line, path)
        if entry is None:
            raise BadInput(f"{path}:{number}: is damaged; remove the trial's folder to train it anew")
        yield entry


def _parsed(line: bytes, path: Path) -> SpoolLine | None:
    """What a line says; None where it is damaged."""
    try:
        return SpoolLine.model_validate_json(line)
    except ValidationError:
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
            refuse_newer(content if isinstance(content, dict) else {}, str(path))  # it may well look otherwise
        return None


def sound_lines(path: Path, images: Path | None = None) -> int:
    """Lines from the first one on that are whole, and whose pictures are; a power cut damages only what follows.

    Args:
        path: the spool.
        images: folder of its pictures; None does not look at them. One that is not there was removed by somebody.

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
    """Reads a spool while a trial writes it; a trial that resumes cuts the end off, and writes on from there.

    Args:
        path: the spool; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._next, self._last = path, 0, 0, 0.0

    def read(self) -> list[SpoolLine]:
        """Entries that were written since the last call, in order; none while a line is damaged."""
        entries = self._new()
        if entries is None:  # cut: what comes after the cut is newer than all that was read
            self._at = self._next = 0
            entries = [entry for entry in self._new() or [] if entry.time > self._last]
        self._last = entries[-1].time if entries else self._last
        return entries

    def _new(self) -> list[SpoolLine] | None:
        """What follows what was read; None where the file does not go on from there."""
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
    """Whether a file is a PNG whose every part is as it was written; a power cut can leave it empty or torn."""
    try:
        open_grid(path)
    except DamagedImage:
        return False
    return True


def complete_lines(path: Path) -> list[bytes]:
    """The raw lines that were written to their end; none where the file is not there."""
    try:
        raw = read_plain(path, None)  # its own size bounds it
    except FileNotFoundError:
        return []
    except BadFile as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]
