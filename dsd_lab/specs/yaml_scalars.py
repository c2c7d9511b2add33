"""YAML scalars by the core schema of YAML 1.2, in which `no` is a string and `1e-4` a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES, MAX_DEPTH, MAX_NODES = 200_000, 50, 20_000
"""Limits of one file: PyYAML reads as much in about a second; ten times the size of any spec written by hand."""


TAG = "tag:yaml.org,2002:"


NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"


SCALARS = {
    "null": (r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (rf"(?:{NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.0123456789")),
    "str": (r"(?s:.*)", None),
}
"""Kind of plain value -> (pattern, first characters of a value without a tag)."""


class CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema; refuses documents above the limits."""

    _depth = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_DEPTH or self._nodes > MAX_NODES:
            bound = f"{MAX_DEPTH} levels deep" if self._depth > MAX_DEPTH else f"{MAX_NODES:,} keys and values"
            raise yaml.MarkedYAMLError(problem=f"more than {bound}", problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _FlowDumper(yaml.SafeDumper):
    """SafeDumper that quotes a string if YAML 1.1 or 1.2 would read anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


CoreSchemaLoader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in SCALARS.items():
    if _first is not None:
        for _schema in (CoreSchemaLoader, _FlowDumper):
            _schema.add_implicit_resolver(TAG + _kind, re.compile(rf"{_pattern}\Z"), _first)


def flow(value: Any) -> str:
    """A value in one line of YAML, such as `{path: /photos, label_column: null}`, to paste into a spec or after `--set`.

    Args:
        value: null, strings, numbers, and lists and mappings of them.
    """

    def dumped(allow_unicode: bool) -> str:
        text: str = yaml.dump(
            value,
            Dumper=_FlowDumper,
            default_flow_style=True,
            sort_keys=False,
            width=float("inf"),
            allow_unicode=allow_unicode,
        )
        return text.strip().removesuffix("\n...")

    text = dumped(True)
    return text if text.isprintable() else dumped(False)
