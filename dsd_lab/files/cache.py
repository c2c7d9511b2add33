"""Caches: JSON objects whose values have one type. What is missing or damaged is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from dsd_lab.files.atomic import read_cache, write_json

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values of one type by key in a file, which may hold others too.

    Args:
        path: the file; its folder is made where something is kept.
        kind: the type, as Pydantic checks it.
    """

    def __init__(self, path: Path, kind: Any) -> None:
        self.path = path
        self._adapter: TypeAdapter[Value] = TypeAdapter(kind)

    def get(self, key: str) -> Value | None:
        """The value; None where it is not there, or is not of the type."""
        return self._valid(read_cache(self.path).get(key))

    def once(self, key: str, make: Callable[[], Value], keep: bool = True) -> Value:
        """The value; made, and kept where that is asked for, if there is none."""
        known = read_cache(self.path)
        if (found := self._valid(known.get(key))) is None:
            found = make()
            if keep:
                self._write(known, key, found)
        return found

    def put(self, key: str, value: Value) -> None:
        """Keep a value in the place of the one that is there."""
        self._write(read_cache(self.path), key, value)

    def _write(self, known: dict[str, Any], key: str, value: Value) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, known | {key: self._adapter.dump_python(value, mode="json")})

    def _valid(self, content: Any) -> Value | None:
        try:
            return None if content is None else self._adapter.validate_python(content)
        except ValidationError:
            return None
