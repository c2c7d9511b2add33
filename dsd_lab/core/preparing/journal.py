"""How far writing a prepared set is: a line for each block of images that is on the disk."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

from PIL import __version__ as pillow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsd_lab.core.data.prepared import JOURNAL
from dsd_lab.core.data.records import shown
from dsd_lab.core.preparing.image_files import ImageFile
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_atomic
from dsd_lab.files.bounded import parse_json, read_plain


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


class _Line(BaseModel):
    model_config = ConfigDict(strict=True)

    records: int = Field(ge=0)
    rows: int = Field(ge=0)
    shape: list[Annotated[int, Field(ge=1)]]
    damaged: list[tuple[int, str]]
    sha256: str | None = None
    end: int = 0


def resumed(out: Path, key: str) -> State:
    """What the journal says; its last line may be torn.

    Raises:
        BadInput: it is of other files or settings, or was begun with another version of Pillow.
    """
    state = State()
    try:
        lines = read_plain(out / JOURNAL, None).decode().splitlines()
        head = parse_json(lines[0].encode())
        begun_with = head["pillow"]
        check_key(out, head["key"], key)
    except (FileNotFoundError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return state
    if begun_with != pillow:
        raise BadInput(
            f"--out {shown(out)}: was begun with another Pillow than {pillow}; remove it, or name another folder"
        )
    for number, text in enumerate(lines[1:], 1):
        try:
            line = _Line.model_validate_json(text)
        except ValidationError:  # torn
            write_atomic(out / JOURNAL, "\n".join([*lines[:number], ""]), durable=True)
            break
        if line.sha256 is not None:
            state.blocks.append(line.sha256)
            state.ends.append(line.end)
        state.records, state.rows, state.shape = line.records, line.rows, tuple(line.shape)
        state.damaged |= dict(line.damaged)
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
