"""Read a YAML file into plain values that remember the line they came from.

YAML 1.2's core schema on PyYAML's safe loader: `1e-4` is a number, `no`, `on`, `010` and `1:30`
are what they look like, duplicate keys are refused, no tag can construct an object, and size,
depth and aliases are bounded before anything is built.
"""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from dsd_lab.errors import BadInput

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 50, 100_000
KeyPath = tuple[str, ...]


class _CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema instead of YAML 1.1's surprises."""


_CoreSchemaLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _CoreSchemaLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass
class Document:
    """Nested plain values and, for every key path, the file and line that set it."""

    values: dict[str, Any]
    marks: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of the closest enclosing key that a file or an option set."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return "spec"

    def merged(self, over: Document) -> Document:
        """This document with `over` laid on top: mappings merge, everything else is replaced."""
        marks = dict(self.marks)
        values = _merge(self.values, over.values, (), marks)
        marks.update(over.marks)
        return Document(values, marks)

    def part(self, path: KeyPath) -> Document:
        """The mapping at `path` (empty where it is absent) as a document of its own."""
        values: Any = self.values
        for key in path:
            values = values.get(key, {}) if isinstance(values, dict) else {}
        marks = {p[len(path) :]: mark for p, mark in self.marks.items() if p[: len(path)] == path}
        return Document(values if isinstance(values, dict) else {}, marks)

    def without(self, *keys: str) -> Document:
        """This document without some of its top-level keys."""
        return Document({k: v for k, v in self.values.items() if k not in keys}, self.marks)

    def with_value(self, path: KeyPath, value: Any, mark: str) -> Document:
        """This document with one value set."""
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        return self.merged(Document(nested, {path: mark}))


def _merge(under: dict[str, Any], over: dict[str, Any], at: KeyPath, marks: dict[KeyPath, str]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            merged[key] = _merge(under[key], value, (*at, key), marks)
        else:
            for stale in [p for p in marks if p[: len(at) + 1] == (*at, key)]:
                del marks[stale]
            merged[key] = copy.deepcopy(value)
    return merged


def parse_scalar(text: str) -> Any:
    """The value that `text` has in a spec: `1e-3`, `true`, `[0, 1]`, `layernorm`.

    Raises:
        BadInput: the text is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=_CoreSchemaLoader)
    except yaml.YAMLError as error:
        raise BadInput(f"{text!r} is not a YAML value: {_problem(error)}") from None
    return None if node is None else _Builder("--set").value(node, ())


def read_document(path: Path) -> Document:
    """Parse the mapping in a YAML file.

    Raises:
        BadInput: the file is missing, unreadable, too large, not YAML, or not one mapping.
    """
    name = _shown(path)
    text = _read_text(path, name)
    try:
        nodes = list(yaml.compose_all(text, Loader=_CoreSchemaLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise BadInput(f"{name}{line}: not valid YAML: {_problem(error)}") from None
    except RecursionError:
        raise BadInput(f"{name}: nested deeper than {MAX_DEPTH} levels") from None
    if not nodes or nodes[0] is None:
        raise BadInput(f"{name}: the file is empty; a spec needs at least `name` and `variants`")
    if len(nodes) > 1:
        second = nodes[1].start_mark.line + 1
        raise BadInput(f"{name}:{second}: a second YAML document starts here; a spec is one document")
    builder = _Builder(name)
    values = builder.value(nodes[0], ())
    if not isinstance(values, dict):
        raise BadInput(f"{name}:1: a spec is a mapping of keys to values, not a {type(values).__name__}")
    return Document(values, builder.marks)


def _read_text(path: Path, name: str) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.read(MAX_BYTES + 1)
        if path.is_dir():
            raise BadInput(f"{name}: is a directory; name a YAML file in it")
        with path.open("rb") as file:  # bounded: /dev/zero must not fill the memory
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{name}: no such file") from None
    except OSError as error:
        raise BadInput(f"{name}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{name}: larger than {MAX_BYTES:,} bytes; a spec is a short text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _shown(path: Path) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    return " ".join(f"{context + ', ' if context else ''}{problem}".split())


class _Builder:
    """Builds plain values from YAML nodes, noting the line of every key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[KeyPath, str] = {}
        self._nodes = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, at: KeyPath) -> Any:
        mark = f"{self.name}:{node.start_mark.line + 1}"
        self.marks.setdefault(at, mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise BadInput(f"{mark}: more than {MAX_NODES:,} values once aliases are expanded")
        if len(at) > MAX_DEPTH:
            raise BadInput(f"{mark}: nested deeper than {MAX_DEPTH} levels")
        if id(node) in self._open:
            raise BadInput(f"{mark}: an alias refers to the value that contains it")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*at, str(i))) for i, item in enumerate(node.value)]
            return self._scalar(cast(yaml.ScalarNode, node), mark)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            raise BadInput(f"{self.name}:{node.start_mark.line + 1}: the tag {node.tag} is not allowed in a spec")
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = f"{self.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise BadInput(f"{mark}: a key is plain text, not a list or a mapping")
            key = key_node.value
            if key in built:
                raise BadInput(f"{mark}: the key {'.'.join((*at, key))!r} appears twice; remove one of them")
            self.marks[(*at, key)] = mark
            built[key] = self.value(value_node, (*at, key))
        return built

    def _scalar(self, node: yaml.ScalarNode, mark: str) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int" and len(text) > 40:
            raise BadInput(f"{mark}: {text[:20]}... is too long for a number")
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "str":
            return text
        raise BadInput(f"{mark}: the tag {node.tag} is not allowed in a spec")
