"""JSON objects with a digest of their content, which detects bit flips that leave the JSON valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SEAL = "manifest_sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the digest."""
    return {**content, _SEAL: _digest(content)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether the content matches its digest; True where there is none, as in files of earlier versions."""
    recorded = content.get(_SEAL)
    return recorded is None or recorded == _digest({key: value for key, value in content.items() if key != _SEAL})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
