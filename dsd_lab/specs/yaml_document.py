"""Reads a YAML file into plain values, with the line of every key.

YAML 1.2's core schema on PyYAML's safe loader: `1e-4` and `010` are numbers, `no`, `on` and `1:30` are text. Duplicate
keys are refused, tags cannot construct objects, and size, depth and aliases are limited before anything is built.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, open_plain
from dsd_lab.files.printable import one_line as one_line
from dsd_lab.specs.near import near_file
from dsd_lab.specs.yaml_scalars import MAX_BYTES, MAX_DEPTH, MAX_NODES, SCALARS, TAG, CoreSchemaLoader

KeyPath = tuple[str, ...]
SET_MARK = "--set "
"""Prefix of the mark of a value from the command line."""


@dataclass
class Document:
    """Nested plain values, and for every key path its mark: the file and line, or the option, that set it."""

    values: dict[str, Any]
    marks: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Mark of a key path, or of the closest enclosing key that has one."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return "spec"

    def merged(self, over: Document) -> Document:
        """This document overridden by `over`: mappings are merged, all other values replaced."""
        marks = dict(self.marks)
        values = _merge(self.values, over.values, (), marks)
        marks.update(over.marks)
        return Document(values, marks)

    def part(self, path: KeyPath) -> Document:
        """The mapping at `path` as a document; empty if it is absent."""
        values: Any = self.values
        for key in path:
            values = values.get(key, {}) if isinstance(values, dict) else {}
        marks = {inner: self.marks[*path, *inner] for inner in _paths(values) if (*path, *inner) in self.marks}
        return Document(values if isinstance(values, dict) else {}, marks)

    def without(self, *keys: str) -> Document:
        """This document without some of its top-level keys."""
        return Document({k: v for k, v in self.values.items() if k not in keys}, self.marks)

    def with_value(self, path: KeyPath, value: Any, mark: str) -> Document:
        """This document with one value set.

        Raises:
            BadInput: the path has more than `MAX_DEPTH` parts.
        """
        if len(path) > MAX_DEPTH:
            raise BadInput(f"{mark}: more than {MAX_DEPTH} levels deep")
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        marks, here = {path: mark}, self.values
        for end, key in enumerate(path[:-1], 1):  # a value that becomes a mapping gets this mark too
            inside = here.get(key)
            if not isinstance(inside, dict):
                marks[path[:end]] = mark
            here = inside if isinstance(inside, dict) else {}
        return self.merged(Document(nested, marks))


def _merge(under: dict[str, Any], over: dict[str, Any], at: KeyPath, marks: dict[KeyPath, str]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            merged[key] = _merge(under[key], value, (*at, key), marks)
        else:
            for stale in _paths(under[key]) if key in under else ():
                marks.pop((*at, key, *stale), None)
            merged[key] = copy.deepcopy(value)
    return merged


def _paths(values: Any) -> Iterator[KeyPath]:
    """The key paths of a value and of all nested values."""
    yield ()
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield from ((str(key), *inner) for inner in _paths(value))


def parse_scalar(text: str, source: str = "value") -> Any:
    """The value that `text` has in a spec: `1e-3`, `true`, `[0, 1]`, `layernorm`.

    Raises:
        BadInput: the text is not YAML.
    """
    node = _compose(text, source, lines=False)
    return None if node is None else _Builder(source, lines=False).value(node, ())


def read_document(path: Path) -> Document:
    """Parse the mapping in a YAML file.

    Raises:
        BadInput: the file is missing, unreadable, too large, not YAML, or not one mapping.
    """
    name = one_line("stdin" if str(path) == "-" else str(path), 200)
    node = _compose(_read_text(path, name), name)
    builder = _Builder(name)
    values = None if node is None else builder.value(node, ())
    if values is None:
        raise BadInput(f"{name}: the file is empty; a spec needs at least `name` and `variants`")
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else "a single value"
        raise BadInput(f"{builder.marks[()]}: a spec is a mapping of keys to values (`name: ...`), not {found}")
    return Document(values, builder.marks)


def _read_text(path: Path, name: str) -> str:
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        elif path.is_dir():
            raise BadInput(f"{name}: is a folder; name a YAML file in it")
        else:
            with open_plain(path) as file:
                raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file{near_file(path)}") from None
    except BadFile as error:
        raise BadInput(f"{name}: {error.strerror}; name a YAML file, or `-` for standard input") from None
    except OSError as error:
        raise BadInput(f"{name}: cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError):  # a NUL in the name; a closed standard input
        raise BadInput(f"{name}: cannot be read") from None
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{name}: larger than {MAX_BYTES:,} bytes, too large for a spec")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadInput(
            f"{name}:{line}: byte {raw[error.start]:#04x} is not UTF-8; save the file as UTF-8 text"
        ) from None


def _compose(text: str, name: str, lines: bool = True) -> yaml.Node | None:
    """The node tree of a text with one document; None if it is empty."""
    try:
        return CoreSchemaLoader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem, place = f"the control character U+{ord(text[error.position]):04X}; remove it", f":{line}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem, place = _problem(error), f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    except (ValueError, OverflowError):  # PyYAML does not catch errors of chr() and int()
        problem, place = "an escape or a number out of range", ""
    raise BadInput(f"{name}{place if lines else ''}: not valid YAML: {one_line(problem, 200)}")


_PROBLEMS = {
    "found character '\\t'": "a tab where only spaces are allowed; indent with spaces",
    "mapping values are not allowed here": "a misplaced ':'; check the indentation, and quote text that contains ': '",
    "expected <block end>": "the indentation does not fit the lines above",
    "could not find expected ':'": "a key without a ':' after it",
    "expected ',' or ']'": "a list that is not closed; a ',' or ']' is missing",
    "expected ',' or '}'": "a mapping that is not closed; a ',' or '}' is missing",
    "found undefined alias": "an alias (`*name`) of something that has no anchor (`&name`) above it",
    "found character '": "text that begins with a character of YAML's own; put it in quotes",
    "found unexpected end of stream": "the closing quote is missing",
    "but found another document": "a second document starts here; a spec is one document",
}
"""Beginning of PyYAML's message -> our message."""


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    for theirs, ours in _PROBLEMS.items():
        if problem.startswith(theirs):
            return ours
    return f"{error.context}, {problem}" if error.context else problem


class _Builder:
    """Builds plain values from YAML nodes, and records the line of every key."""

    def __init__(self, name: str, lines: bool = True) -> None:
        self.name, self.lines = name, lines
        self.marks: dict[KeyPath, str] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def _mark(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name

    def _kind(self, node: yaml.Node) -> str:
        """The last part of a standard YAML tag, such as `int`."""
        kind, scalar = node.tag.removeprefix(TAG), isinstance(node, yaml.ScalarNode)
        if kind not in (SCALARS if scalar else ("map",) if isinstance(node, yaml.MappingNode) else ("seq",)):
            raise BadInput(f"{self._mark(node)}: the tag {one_line(node.tag)!r} is not allowed in a spec; remove it")
        return kind

    def value(self, node: yaml.Node, at: KeyPath) -> Any:
        mark = self._mark(node)
        self.marks.setdefault(at, mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise BadInput(f"{mark}: more than {MAX_NODES:,} values once aliases are expanded")
        if id(node) in self._open:
            raise BadInput(f"{mark}: an alias refers to the value that contains it")
        if len(at) >= MAX_DEPTH:
            raise BadInput(f"{mark}: more than {MAX_DEPTH} levels deep once aliases are expanded")
        kind = self._kind(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*at, str(i))) for i, item in enumerate(node.value)]
            return self._scalar(cast(yaml.ScalarNode, node), kind, mark)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = self._mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise BadInput(f"{mark}: a key is plain text, not a list or a mapping")
            self._kind(key_node)
            key = key_node.value
            if key == "<<":
                raise BadInput(f"{mark}: merge keys (`<<`) are not read; use `base`, `variants` or `extends`")
            if key in built:
                raise BadInput(f"{mark}: the key {one_line('.'.join((*at, key)))!r} appears twice; remove one of them")
            _check_text(key, mark)
            self.marks[(*at, key)] = mark
            built[key] = self.value(value_node, (*at, key))
        return built

    def _scalar(self, node: yaml.ScalarNode, kind: str, mark: str) -> Any:
        text: str = node.value
        if not re.fullmatch(SCALARS[kind][0], text):
            raise BadInput(f"{mark}: {one_line(text)!r} is not what its tag `!!{kind}` says; remove the tag")
        _check_text(text, mark)
        if kind == "int" and len(text) > 40:
            raise BadInput(f"{mark}: {text[:20]}... is too long for a number")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


def _check_text(text: str, mark: str) -> None:
    """Refuse characters that cannot be stored."""
    for character in text:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            what = "a NUL character" if character == "\0" else "half of a surrogate pair"
            raise BadInput(f"{mark}: {one_line(text)!r} holds {what}, which cannot be stored; remove it")
