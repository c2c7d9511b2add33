"""Check tags of runs, which may be foreign, and record the ids of the runs that this home made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from mlflow.entities import Run

from dsd_lab.files.atomic import write_json
from dsd_lab.files.bounded import read_json_object
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import Home
from dsd_lab.home.mark import RUNS
from dsd_lab.home.names import is_code, is_number, is_sweep_key, is_trial_id
from dsd_lab.home.trial_folder import STATES

NEEDED = {
    "sweep": ("dsd.sweep",),
    "trial": ("dsd.sweep", "dsd.trial", "dsd.code"),
    "pointer": ("dsd.sweep", "dsd.trial", "dsd.points_to"),
}
"""Tags that every run of ours has, by its kind."""
_SLOT = {
    "sweep": ("dsd.imported", "dsd.sweep"),
    "trial": ("dsd.imported", "dsd.trial", "dsd.code"),
    "pointer": ("dsd.sweep", "dsd.trial", "dsd.points_to"),
}
"""Tags that together identify a run of a home. Imported trials have separate runs."""


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 18


def _is_seconds(value: str) -> bool:
    try:
        return is_number(float(value))
    except ValueError:
        return False


_TAGS: dict[str, Callable[[str], bool]] = {
    "dsd.trial": is_trial_id,
    "dsd.sweep": is_sweep_key,
    "dsd.code": is_code,
    "dsd.points_to": lambda value: re.fullmatch(r"[0-9a-f]{32}", value) is not None,
    "dsd.state": lambda value: value in STATES,
    "dsd.step": _is_count,
    "dsd.lines": _is_count,
    "dsd.seconds": _is_seconds,
}


def invalid_tag(run: Run) -> str | None:
    """The first invalid tag of a run, as text; None where all are valid. Tags become paths, queries and numbers."""
    tags = run.data.tags
    needed = NEEDED.get(tags.get("dsd.kind", "trial"), ())
    for name, is_one in _TAGS.items():
        if not is_one(tags[name]) if name in tags else name in needed:
            return f"its tag {name} is {tags.get(name, 'missing')[:100]!r}"
    return None


def slot_of(tags: dict[str, str]) -> str:
    """The key under which a run with these tags is recorded."""
    kind = tags["dsd.kind"]
    return " ".join([kind, *(tags.get(name, "-") for name in _SLOT[kind])])


class Record:
    """`mlflow-runs.json` of a home folder: run ids by store and slot.

    Args:
        home: the home folder.
        uri: of the store; None: the database in the home folder.
    """

    def __init__(self, home: Home, uri: str | None) -> None:
        self._path = home.root / RUNS
        self._home = home.id
        self._store = "own" if uri is None else hashlib.sha256(without_password(uri, uri).encode()).hexdigest()[:16]
        self._found: dict[str, str] = self._recorded(read_json_object(self._path) or {})
        self._new: dict[str, str] = {}

    def get(self, slot: str) -> str | None:
        """The recorded run id; None where there is none."""
        return self._found.get(slot)

    def add(self, slot: str, run_id: str) -> None:
        """Record a run."""
        if self._found.get(slot) != run_id:
            self._found[slot] = self._new[slot] = run_id

    def save(self) -> None:
        """Write new entries. The caller holds the lock of the store's writers."""
        if self._new:
            everything = read_json_object(self._path) or {}
            found = self._recorded(everything) | self._new
            write_json(self._path, everything | {"home": self._home, self._store: found}, durable=True)
            self._new = {}

    def _recorded(self, everything: dict[str, Any]) -> dict[str, str]:
        found = everything.get(self._store)
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
