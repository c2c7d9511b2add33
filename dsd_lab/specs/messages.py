"""Turns Pydantic's errors into messages of one line: file:line, key, value, what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dsd_lab.specs.near import did_you_mean as did_you_mean
from dsd_lab.specs.renamed import gone, present_key, present_value
from dsd_lab.specs.trial import Trial
from dsd_lab.specs.yaml_document import SET_MARK, Document, KeyPath, one_line


def complaints(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """One line for each invalid key, in the order of the fields."""
    beginnings: dict[KeyPath, str] = {}
    wanted: dict[KeyPath, list[str]] = {}
    several: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False):
        path, text = _key_and_text(detail, document.values)
        where, shown, kind = document.where(path), one_line(".".join(path)), detail["type"]
        if kind == "extra_forbidden":
            beginnings[path] = f"{where}: unknown key {shown!r}{_meant(model, path)}"
        elif kind == "missing":
            beginnings[path] = f"{where}: the key {shown!r} is missing"
        elif kind == "value_error":
            beginnings.setdefault(path, f"{_nearest_mark(document, path, text)}: {shown}: {text}")
        else:  # each branch of a union (a whole number or 'holdout') reports its own error for the same key
            beginnings.setdefault(path, f"{where}: {shown}: {_as_written(detail['input'])} is not valid; it must be ")
            wanted.setdefault(path, []).append(_wanted(detail))
            if model is Trial and kind != "list_type":
                several[path] = _as_axis(path, detail["input"], where)
    return [
        beginning + " or ".join(wanted.get(path, [])) + several.get(path, "") for path, beginning in beginnings.items()
    ]


def _as_axis(path: KeyPath, value: Any, where: str) -> str:
    """How to write a grid axis, if several values were given for one field; else empty."""
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    if len(path) != 2 or len(values) < 2:
        return ""
    key, listed = ".".join(path), one_line(", ".join(str(v).strip() for v in values))
    if where.startswith(SET_MARK):
        return f"; several values are an axis of the grid: {SET_MARK}'grid.{key}=[{listed}]'"
    return f"; several values are an axis of `grid`: write {key}: [{listed}] there"


def _key_and_text(detail: ErrorDetails, values: Any) -> tuple[KeyPath, str]:
    path: list[str] = []
    for part in detail["loc"]:
        inside = dict(enumerate(values)) if isinstance(values, list) else values if isinstance(values, dict) else {}
        if part in inside or detail["type"] == "missing":
            path.append(str(part))
            values = inside.get(part)
        # else Pydantic's name for the branch of a union ("int") or for the key of a mapping ("[key]")
    text = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        # Validators of several fields begin with the key at fault.
        key, colon, rest = text.partition(": ")
        if colon and " " not in key:
            return (*path, *key.split(".")), rest
    return tuple(path), text


def _nearest_mark(document: Document, path: KeyPath, text: str) -> str:
    """`file:line` of the invalid key; if the spec does not set it, of another key that the text names."""
    beside = [(*path[:-1], word) for word in re.findall(r"[a-z_]+", text)]
    return next((document.marks[p] for p in (path, *beside) if p in document.marks), document.where(path))


def _as_written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(repr(value))


def _wanted(detail: ErrorDetails) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    bounds = {
        "greater_than": ("above", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("below", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in bounds:
        word, bound = bounds[kind][0], context[bounds[kind][1]]
        return f"{word} {bound:,.0f}" if bound == int(bound) else f"{word} {bound:g}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        new = present_value(tuple(map(str, detail["loc"])), value)
        if new is not None:
            return f"{new!r}, as {value!r} is named since schema version 2"
        near = did_you_mean(value, known) if isinstance(value, str) and "," not in value and known else ""
        return str(context["expected"]) + (near if "did you mean" in near else "")
    if kind in ("int_type", "int_from_float"):
        return "a whole number" + (f": write {value:.0f}" if isinstance(value, float) and value == value // 1 else "")
    if kind == "float_type":
        return "a number" + (
            " (without quotes)" if isinstance(value, str) and re.fullmatch(r"[-+.\deE]+", value) else ""
        )
    if kind == "string_type":
        return "text" + (f": write '{value}' in quotes" if isinstance(value, int | float) else "")
    if kind == "list_type":
        return "a list" + (f": write [{one_line(str(value))}]" if isinstance(value, int | float | str) else "")
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^ema:"):
        return "'ema:' with a decay below 1, as in ema:0.999"
    if kind == "string_pattern_mismatch" and "(/" in context["pattern"]:
        return "a name on the Hugging Face Hub, such as ylecun/mnist"
    if kind == "string_pattern_mismatch":  # all other patterns are names
        letters = "letters" if "A-Z" in context["pattern"] else "lower-case letters"
        return f"at most 64 {letters}, digits, '.', '_' or '-', the first a letter or a digit"
    if kind in ("dict_type", "model_type"):
        return "a mapping of keys to values" + (": write {} for an empty one" if value is None else "")
    fixed = {
        "too_short": "given at least one entry",
        "finite_number": "a finite number",
        "string_unicode": "text that Unicode has, without half a surrogate pair",
    }
    return fixed.get(kind, detail["msg"][0].lower() + detail["msg"][1:])


def _meant(model: type[BaseModel], path: KeyPath) -> str:
    inside, key = ".".join((*path[:-1], "")), path[-1]
    if model is not Trial and len(path) == 1 and key in Trial.model_fields:
        return "; it belongs under 'base' or a variant"
    if path == ("extends",):
        return "; a file extends another, a profile cannot"
    renamed = present_key(path)
    if renamed is not None:
        return f"; it is {renamed!r} since schema version 2"
    if (why := gone(path)) is not None:
        return f"; {why}"
    elsewhere = places_of(key)
    if elsewhere and (model is Trial or len(path) == 1):
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    return did_you_mean(inside + key, [inside + name for name in _known_keys(model, path[:-1])])


def summary(faults: dict[str, list[str]], variants: Sequence[str]) -> str:
    """The first line from `complaints`, and the number of further lines.

    Args:
        faults: each line, and the variants that it concerns.
        variants: all variants; a line that concerns all of them names none.
    """
    line, concerned = next(iter(faults.items()))
    variant = "" if set(concerned) >= set(variants) else f" (variant {concerned[0]!r})"
    return line + variant + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")


def places_of(key: str) -> list[str]:
    """The sections of a trial that have a field of this name, as key paths."""
    sections = ((name, field.annotation) for name, field in Trial.model_fields.items())
    return [f"{name}.{key}" for name, section in sections if section and key in section.model_fields]


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    current: Any = model
    for part in path:
        if part.isdecimal():  # a place in a list, whose annotation is already that of its entries
            continue
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation if part in current.model_fields else None
        inner = [a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
        current = inner[0] if inner else current
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [f.alias or name for name, f in current.model_fields.items()]
