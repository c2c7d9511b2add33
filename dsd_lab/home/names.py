"""Valid names and numbers in a home folder's files, which may be damaged or foreign and become paths and queries."""

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
"""Allowed entries of a trial's folder. `gc` and `rm` do not touch a folder with other entries."""
SWEEP_ENTRIES = ("manifest.json", "revisions.json", "manifest.lock", "machine.jsonl", "stored.json", "lock")
"""Allowed entries of a sweep's folder."""
PICTURE_STEM, METRIC = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", r"[A-Za-z0-9_./ -]{1,250}"
NOT_FINITE = "not_finite/"
"""Prefix of a metric whose value 1 records that the metric named by the rest was not finite."""


_EXTRACTOR_VERSION = 1
"""Part of the cache's file name; raise it when the extractor's network or its training changes."""


def extractor_path(cache: Path, fingerprint: str, conditional: bool = True) -> Path:
    """Cache path of the extractor of a dataset; `conditional`: trained with classes."""
    task = "" if conditional else "-rotation"
    return cache / "extractors" / f"{fingerprint[:16]}-v{_EXTRACTOR_VERSION}{task}.safetensors"


DRAWING = r"[0-9a-f]{12}-[0-9a-f]{16}"
"""A folder of images that a trial's evaluation draws."""


def drawing_path(cache: Path, trial: str, digest: str) -> Path:
    """Where images of a trial are kept while they are drawn and measured."""
    return cache / "drawn" / f"{trial}-{digest}"


def is_trial_id(value: Any) -> bool:
    """Whether a value is twelve hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(TRIAL_ID, value) is not None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; JSON's `1e999` reads as infinity."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def is_date(value: Any) -> bool:
    """Whether a value is in seconds since 1970 and between 2000 and 2100, which a store can hold."""
    return isinstance(value, (int, float)) and 946_684_800 <= value < 4_102_444_800


def is_code(value: Any) -> bool:
    """Whether a value is a hash of training code, as a status or a tag records it."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value) is not None


def is_sweep_key(value: Any) -> bool:
    """Whether a value is the name of a sweep's folder."""
    return isinstance(value, str) and re.fullmatch(SWEEP_KEY, value) is not None


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Replace values that are not finite, which JSON and the store cannot hold, by `not_finite/NAME` = 1."""
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return kept | {f"{NOT_FINITE}{name}": 1.0 for name in metrics if name not in kept}
