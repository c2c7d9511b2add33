"""Addresses of SQLite's files as SQLAlchemy reads them, which takes `%41` for a letter and `?` for the end of a path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

_SQLITE = "sqlite:///"


def sqlite_uri(path: Path) -> str:
    """The address of a file."""
    return _SQLITE + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file at an address; None of another kind of store, of one in memory, or of SQLite's own `file:` addresses."""
    place = unquote(uri.removeprefix(_SQLITE).partition("?")[0])
    named = uri.startswith(_SQLITE) and place and not place.startswith((":memory:", "file:"))
    return Path(place) if named else None
