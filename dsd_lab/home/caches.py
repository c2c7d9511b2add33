"""Where cached files lie below a home folder."""

from __future__ import annotations

from pathlib import Path

_VERSION = 1
"""Part of the cache's file name; raised when the network or its training changes."""


def extractor_path(cache: Path, fingerprint: str, conditional: bool = True) -> Path:
    """Where the extractor of a data set, with or without classes to tell apart, is cached."""
    task = "" if conditional else "-rotation"
    return cache / "extractors" / f"{fingerprint[:16]}-v{_VERSION}{task}.safetensors"
