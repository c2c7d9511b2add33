"""What can be freed, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Freeable:
    """Something that can be freed."""

    kind: str
    path: Path
    why: str
    bytes: int
    free: Callable[[], bool]
    """Frees it; False where somebody has taken hold of it meanwhile."""

    def row(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"kind": self.kind, "path": str(self.path), "why": self.why, "bytes": self.bytes}


def is_own_folder(path: Path) -> bool:
    """A folder of ours; a link leads to a place that somebody chose, and is left alone."""
    return path.is_dir() and not path.is_symlink()
