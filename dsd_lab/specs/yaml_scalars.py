"""YAML scalars by the core schema of YAML 1.2, in which `no` is a string and `1e-4` a number."""

from __future__ import annotations

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


CoreSchemaLoader.yaml_implicit_resolvers = {}
