"""Reading a trial's spool: apart from the writer, so that nothing that only reads has to import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, open_plain, read_plain
from dsd_lab.files.image_files import DamagedImage, open_grid
from dsd_lab.home.names import are_metrics, is_number, is_picture
from dsd_lab.home.trial_folder import readable

_NEEDS = {
    "train": ("metrics", "seconds"),
    "probe": ("metrics", "spectra", "seconds"),
    "images": ("files",),
    "checkpoint": (),
    "diverged": (),
    "finished": (),
}
"""What a line of each kind has beside its number, time and step."""
_MOST = 10**11
"""Above every step and every second since 1970 that will be written."""


def read_spool(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a spool; a torn last line is not there yet.

    Raises:
        BadInput: a line is damaged, or newer than this program.
    """
    return parsed_lines(complete_lines(path), path)


def parsed_lines(lines: list[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """What lines of a spool say.

    Raises:
        BadInput: as `read_spool`.
    """
    for number, line in enumerate(lines, 1):
        entry = _parsed(line, path)
        if entry is None:
            raise BadInput(f"{path}:{number}: is damaged; remove the trial's folder to train it anew")
        yield entry


def _parsed(line: bytes, path: Path) -> dict[str, Any] | None:
    """What a line says; None where it is damaged."""
    try:
        entry = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    if isinstance(entry, dict):
        readable(entry, path)  # a newer line may well look otherwise
    return entry if _is_whole(entry) else None


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
        pictures = [] if images is None else [images / name for name in entry.get("files", [])]
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

    def read(self) -> list[dict[str, Any]]:
        """Entries that were written since the last call, in order; none while a line is damaged."""
        entries = self._new()
        if entries is None:  # cut: what comes after the cut is newer than all that was read
            self._at = self._next = 0
            entries = [entry for entry in self._new() or [] if entry["time"] > self._last]
        self._last = entries[-1]["time"] if entries else self._last
        return entries

    def _new(self) -> list[dict[str, Any]] | None:
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
        entries: list[dict[str, Any]] = []
        for line in whole.split(b"\n")[:-1]:
            entry = _parsed(line, self._path)
            if entry is None or entry["n"] != self._next + len(entries):
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


def _is_whole(entry: Any) -> bool:
    """Whether a line is one that a trial writes, so far as its readers rely on it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or entry["kind"] not in _NEEDS:
        return False
    if not {"n", "time", "step", *_NEEDS[entry["kind"]]} <= entry.keys():
        return False
    spectra, files = entry.get("spectra", {}), entry.get("files", [])
    return (
        all(isinstance(entry[name], int) and 0 <= entry[name] < _MOST for name in ("n", "step"))
        and all(is_number(n) and 0 <= n < _MOST for n in (entry["time"], entry.get("seconds", 0)))
        and are_metrics(entry.get("metrics", {}))
        and isinstance(spectra, dict)
        and all(isinstance(values, list) and all(map(is_number, values)) for values in spectra.values())
        and isinstance(files, list)
        and all(map(is_picture, files))
    )


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
