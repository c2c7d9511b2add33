"""Turn Pydantic's errors into one line a person can act on: file:line, key, value, what would be right."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dsd_lab.specs.document import Document, KeyPath


def did_you_mean(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of known names where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known)[:20])}" if known else ""


def complaint(error: ValidationError, model: type[BaseModel], document: Document, at: KeyPath) -> str:
    """The first error of a validation as one line.

    Args:
        error: what Pydantic raised.
        model: the model that was validated.
        document: the values with their lines.
        at: key path of the document within its file, where a mark of its own is missing.
    """
    first = error.errors()[0]
    loc = tuple(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    kind = first["type"]
    if kind == "value_error" and ": " in text:
        # Validators of several fields begin with the key at fault.
        key, rest = text.split(": ", 1)
        if " " not in key:
            loc, text = (*loc, *key.split(".")), rest
    key_path = _without_branches(loc, document.values)
    where, shown = document.where(key_path), ".".join(key_path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "extra_forbidden":
        known = _known_keys(model, key_path[:-1])
        return f"{where}: unknown key {shown!r}{did_you_mean(key_path[-1], known)}{more}"
    if kind == "missing":
        return f"{where}: the key {shown!r} is missing{more}"
    variant = f" (variant {at[1]!r})" if len(at) == 2 and "variants." not in where else ""
    if kind == "value_error":
        return f"{where}: {shown}: {text}{variant}{more}"
    value = repr(first["input"])
    value = value if len(value) <= 80 else value[:77] + "..."
    text = text[0].lower() + text[1:]
    return f"{where}: {shown}: {value} is not valid: {text.replace('input should', 'it should')}{variant}{more}"


def _without_branches(loc: KeyPath, values: Any) -> KeyPath:
    # Pydantic appends the branch of a union ("int", "literal[...]") to the location.
    kept: list[str] = []
    for part in loc:
        if part.startswith(("literal[", "function-")) or (
            part in ("int", "float", "str", "bool") and not isinstance(values, dict)
        ):
            continue
        kept.append(part)
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
    return tuple(kept)


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    current: Any = model
    for part in path:
        found = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if found is None and not part.isdigit():
            return []
        annotation = found.annotation if found is not None else current
        arguments = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        current = arguments[0] if arguments else annotation
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [f.alias or name for name, f in current.model_fields.items()]
