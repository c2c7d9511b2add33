"""What is known about a data set without loading it: the facts that its last trial here has read from the images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dsd_lab.files import write_json
from dsd_lab.home import Home
from dsd_lab.specs.fields import Data


def remember_facts(home: Home, data: Data, facts: dict[str, Any]) -> None:
    """Keep what was read from the images of a data set."""
    path = _path(home, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)


def known_facts(home: Home, data: Data) -> dict[str, Any] | None:
    """What was read when the data set was last loaded in this home folder; None before that."""
    try:
        facts: dict[str, Any] = json.loads(_path(home, data).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return facts


def _path(home: Home, data: Data) -> Path:
    text = data.model_dump_json(exclude={"memory", "workers"})
    return home.cache / "data" / f"facts-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
