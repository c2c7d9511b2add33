"""What is known about a data set without loading it: the facts that its last trial here has read from the images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dsd_lab.files import write_json
from dsd_lab.home import Home
from dsd_lab.specs.fields import Data, Trial
from dsd_lab.specs.identity import data_name


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


def skipped(trial: Trial, facts: dict[str, Any] | None) -> str:
    """One line about the damaged images that were left out of a trial's data; empty where there are none."""
    if not facts or not facts.get("damaged"):
        return ""
    return f"data {data_name(trial)}: {facts['damaged']} damaged images are left out, first {facts['damaged_named'][0]}"


def _path(home: Home, data: Data) -> Path:
    text = data.model_dump_json(exclude={"memory", "workers"})
    return home.cache / "data" / f"facts-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
