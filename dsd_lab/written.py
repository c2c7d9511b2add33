"""What names and numbers in a home folder's files look like; they may be damaged, or anybody's, and become paths and queries."""

from __future__ import annotations

import re
import sys
from typing import Any

TRIAL_ID, SWEEP_KEY = r"[0-9a-f]{12}", r"[a-z0-9][a-z0-9._-]{0,131}"
PICTURE_STEM, METRIC = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", r"[A-Za-z0-9_./ -]{1,250}"
_METRIC = re.compile(METRIC)


def is_trial_id(value: Any) -> bool:
    """Twelve hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(TRIAL_ID, value) is not None


def is_picture(value: Any) -> bool:
    """The name of a PNG, without a folder."""
    return isinstance(value, str) and re.fullmatch(rf"{PICTURE_STEM}\.png", value) is not None


def is_number(value: Any) -> bool:
    """A finite number; JSON's `1e999` is read as infinity."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def are_metrics(value: Any) -> bool:
    """Finite numbers by names that MLflow takes."""
    return isinstance(value, dict) and all(_METRIC.fullmatch(k) and is_number(v) for k, v in value.items())
