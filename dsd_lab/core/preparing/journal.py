"""How far writing a prepared set is: a line for each block of images that is on the disk."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from PIL import __version__ as pillow

from dsd_lab.core.data.prepared import JOURNAL
from dsd_lab.core.data.records import shown
from dsd_lab.core.preparing.image_files import ImageFile
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_atomic


@dataclass
class State:
    """How far writing is, as the journal says."""

    records: int = 0
    rows: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Bytes of the images up to the end of each block."""
    shape: tuple[int, ...] = ()


def begin(out: Path, key: str) -> None:
    """An empty journal."""
    write_atomic(out / JOURNAL, json.dumps({"key": key, "pillow": pillow}) + "\n", durable=True)


def note(lines: TextIO, images: ImageFile, state: State, records: int, fresh: dict[int, str]) -> None:
    """A line of the journal about the images since the last one, which are on the disk before it is."""
    line = {"records": records, "rows": images.rows, "shape": state.shape, "damaged": [*fresh.items()]}
    if images.rows > state.rows:
        state.blocks.append(images.flush())
        state.rows = images.rows
        state.ends.append(images.end)
        line |= {"sha256": state.blocks[-1], "end": images.end}
    state.records = records
    state.damaged |= fresh
    lines.write(json.dumps(line) + "\n")
    lines.flush()
    os.fsync(lines.fileno())
    fresh.clear()


def resumed(out: Path, key: str) -> State:
    """What the journal says; its last line may be torn.

    Raises:
        BadInput: it is of other files or settings.
    """
    state = State()
    try:
        lines = (out / JOURNAL).read_text().splitlines()
        head = json.loads(lines[0])
        check_key(out, head["key"], key)
    except (FileNotFoundError, ValueError, TypeError, KeyError, IndexError):
        return state
    if head.get("pillow") != pillow:
        raise BadInput(
            f"--out {shown(out)}: was begun with another Pillow than {pillow}; remove it, or name another folder"
        )
    for number, line in enumerate(lines[1:], 1):
        try:
            said = json.loads(line)
            records, rows, shape, damaged = said["records"], said["rows"], tuple(said["shape"]), dict(said["damaged"])
            written = (str(said["sha256"]), int(said["end"])) if rows > state.rows else None
        except (ValueError, TypeError, KeyError):  # torn
            write_atomic(out / JOURNAL, "\n".join([*lines[:number], ""]), durable=True)
            break
        if written is not None:
            state.blocks.append(written[0])
            state.ends.append(written[1])
        state.records, state.rows, state.shape = records, rows, shape
        state.damaged |= damaged
    return state


def check_key(out: Path, found: object, key: str) -> None:
    """See that a folder belongs to these files and settings.

    Raises:
        BadInput: it does not.
    """
    if found != key:
        raise BadInput(
            f"--out {shown(out)}: was begun from other files or with other settings; remove it, or name another folder"
        )
