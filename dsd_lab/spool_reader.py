"""Reading a trial's spool: apart from the writer, so that nothing that only reads has to import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_spool(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a spool; a torn last line is not there yet."""
    for line in complete_lines(path):
        yield json.loads(line)


def complete_lines(path: Path) -> list[bytes]:
    """The raw lines that were written to their end; none where the file is not there."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line + b"\n" for line in raw.split(b"\n")[:-1]]
