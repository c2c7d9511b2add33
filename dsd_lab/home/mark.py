"""The mark file of a home folder, which shows that dsd-lab made the folder and holds the home's id."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import uuid
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dsd_lab.files.bounded import BadFile, read_json_object
from dsd_lab.home.record_types import Record, Text

MARK, RUNS = "dsd-lab-home.json", "mlflow-runs.json"
"""The mark file, and the record of the home's MLflow runs, which holds the home's id too."""
_NOTE = "dsd-lab keeps its trials here; `dsd-lab gc` and `dsd-lab rm` delete only in folders with this file"


class HomeMark(Record):
    """`dsd-lab-home.json`."""

    format: int = 1
    home: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    note: Text = ""


def home_id(root: Path) -> str | None:
    """The id of a home, 32 random hexadecimal digits; None where the mark is missing or damaged."""
    try:
        handle = os.open(root / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        return _id_in(file.read(4096))


def mark_home(root: Path, lost: str | None = None) -> str:
    """Write the mark file where it is missing or damaged. Returns the home's id.

    Concurrent processes agree on one id.

    Args:
        root: the home folder.
        lost: the id that it had, if that is known; the record of its runs comes first.

    Raises:
        OSError: the mark file cannot be written, or is a link or a pipe.
    """
    known = home_id(root)
    if known is not None:
        return known
    handle = os.open(root / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadFile(root / MARK, "is not a regular file")
        fcntl.flock(file, fcntl.LOCK_EX)
        known = _id_in(os.read(handle, 4096))
        if known is None:
            # The home's runs in MLflow carry its id: a lost mark file gets the same id again.
            known = _valid((read_json_object(root / RUNS) or {}).get("home")) or lost or uuid.uuid4().hex
            file.seek(0)
            file.truncate()
            file.write(HomeMark(format=1, home=known, note=_NOTE).model_dump_json(indent=1).encode() + b"\n")
            os.fsync(handle)
    return known


def _id_in(raw: bytes) -> str | None:
    try:
        return HomeMark.model_validate_json(raw).home
    except ValidationError:
        return None


def _valid(found: object) -> str | None:
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f]{32}", found) else None
