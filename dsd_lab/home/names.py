"""What names and numbers in a home folder's files look like; they may be damaged, or anybody's, and become paths and queries."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

TRIAL_ID, SWEEP_KEY = r"[0-9a-f]{12}", r"[a-z0-9][a-z0-9._-]{0,131}"
TRIAL_ENTRIES = frozenset(
    [
        "trial.json",
        "status.json",
        "progress.json",
        "imported.json",
        "evaluating.json",
        "parameters.json",
        "spool.jsonl",
        "lock",
        "code.diff",
        "error.txt",
        "hang.txt",
        "checkpoints",
        "images",
        "evaluations",
        "crash",
    ]
)
"""What a trial's folder may hold; `gc` and `rm` leave a folder alone that holds anything else."""
SWEEP_ENTRIES = ("manifest.json", "revisions.json", "manifest.lock", "machine.jsonl", "lock")
"""What a sweep's folder may hold."""
PICTURE_STEM, METRIC = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", r"[A-Za-z0-9_./ -]{1,250}"
NOT_FINITE = "not_finite/"
"""Begins the name of a metric that says, by a 1, that the one of the rest of its name had no finite value."""


_EXTRACTOR_VERSION = 1
"""Part of the cache's file name; raised when the extractor's network or its training changes."""


def extractor_path(cache: Path, fingerprint: str, conditional: bool = True) -> Path:
    """Where the extractor of a data set, with or without classes to tell apart, is cached."""
    task = "" if conditional else "-rotation"
    return cache / "extractors" / f"{fingerprint[:16]}-v{_EXTRACTOR_VERSION}{task}.safetensors"


def is_trial_id(value: Any) -> bool:
    """Twelve hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(TRIAL_ID, value) is not None


def is_number(value: Any) -> bool:
    """A finite number; JSON's `1e999` is read as infinity."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def is_date(value: Any) -> bool:
    """Seconds since 1970 of a date between 2000 and 2100: what a store can hold, and a clock can have meant."""
    return isinstance(value, (int, float)) and 946_684_800 <= value < 4_102_444_800


def is_code(value: Any) -> bool:
    """A hash of training code as a status or a tag records it."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value) is not None


def is_sweep_key(value: Any) -> bool:
    """The name of a sweep's folder."""
    return isinstance(value, str) and re.fullmatch(SWEEP_KEY, value) is not None


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Numbers that JSON and the store can hold; what is left out is said to be, since it would look like never measured."""
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return kept | {f"{NOT_FINITE}{name}": 1.0 for name in metrics if name not in kept}
