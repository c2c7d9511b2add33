"""Reading a trial's spool: apart from the writer, so that nothing that only reads has to import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.home import readable


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
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not {"kind", "step"} <= entry.keys():
            raise BadInput(f"{path}:{number}: is damaged; remove the trial's folder to train it anew")
        yield readable(entry, path)


def complete_lines(path: Path) -> list[bytes]:
    """The raw lines that were written to their end; none where the file is not there."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]
