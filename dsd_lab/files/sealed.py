"""JSON objects that carry a digest of themselves, so that a flipped bit is noticed even where they stay JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SEAL = "manifest_sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its digest."""
    return {**content, _SEAL: _digest(content)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether it is what was sealed; what has no digest, as in earlier versions, cannot be told to be another."""
    told = content.get(_SEAL)
    return told is None or told == _digest({key: value for key, value in content.items() if key != _SEAL})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
