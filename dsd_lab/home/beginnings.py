"""Index of trials whose training may share its first steps: trial ids by `beginning_key`."""

from __future__ import annotations

import os
from pathlib import Path

from dsd_lab.home.home import Home
from dsd_lab.home.names import is_trial_id


def record_beginning(home: Home, key: str, trial_id: str) -> None:
    """Add a trial id to a key."""
    path = _place(home, key)
    if trial_id in trials_with_key(home, key):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        os.write(handle, f"{trial_id}\n".encode())  # a single write, since other processes append too
    finally:
        os.close(handle)


def trials_with_key(home: Home, key: str) -> list[str]:
    """Trial ids noted under a key; damaged lines are skipped."""
    try:
        lines = _place(home, key).read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in dict.fromkeys(lines) if is_trial_id(line)]


def _place(home: Home, key: str) -> Path:
    return home.cache / "beginnings" / f"{key}.txt"
