"""`dsd-lab schema`: the JSON Schema of spec files, for editors.

The schema checks every place that can hold a trial's fields and requires none of them, since omitted fields are
inherited or have defaults. Names of parts are those of the package and of loaded plug-ins. In a spec that requires
an unloaded plug-in, any name of a part is valid; all other checks remain.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from dsd_lab.cli.options import print_json
from dsd_lab.errors import OK
from dsd_lab.specs.loading import STEPS_FACTOR
from dsd_lab.specs.part_fields import PART_KIND, PART_NAME
from dsd_lab.specs.registry import plugin_parts, plugins
from dsd_lab.specs.sweep import NAME, Sweep
from dsd_lab.specs.trial import Trial

_OPEN = "Open"
"""Prefix of definitions that accept unknown names of parts."""
_WITHOUT = ("schema", "name", "profile", "profiles")
"""Keys of a file that a profile does not have."""

Schema = dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    print_json(spec_schema())
    return OK


def spec_schema() -> Schema:
    """The schema of a spec file, with checks of base, variants, grid, profiles and evaluations."""
    schema, trial = Sweep.model_json_schema(by_alias=True), Trial.model_json_schema()
    definitions = schema.pop("$defs") | trial.pop("$defs")
    definitions["Trial"] = trial
    why = {"type": "string", "description": "What this variant shows."}
    factor = {
        "type": "number",
        "minimum": 0.01,
        "maximum": 100,
        "description": "Factor on training.steps of this variant, such as what makes its training FLOPs those of another.",
    }
    definitions["Variant"] = {**trial, "properties": {"why": why, STEPS_FACTOR: factor, **trial["properties"]}}
    _close_options(definitions)
    definitions["Grid"] = _grid(definitions)
    keys = {key: _described(content) for key, content in schema["properties"].items()}
    places: Schema = {
        "base": {"$ref": "#/$defs/Trial"},
        "variants": _named("Variant") | {"minProperties": 1},
        "grid": {"$ref": "#/$defs/Grid"},
        "evaluate": {"type": "array", "items": {"$ref": "#/$defs/Generation"}},
    }
    definitions["Profile"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {k: content | places.get(k, {}) for k, content in keys.items() if k not in _WITHOUT},
    }
    places["profiles"] = _named("Profile")
    opened = _opened(definitions | {"": places})
    schema["properties"] = keys | {
        "extends": {
            "type": "string",
            "description": "A spec file in this file's folder or below, from which this one inherits.",
        }
    }
    others = {"requires": {"contains": {"not": {"enum": sorted(plugins)}}}}
    schema |= {
        "if": {"required": ["requires"], "properties": others},
        "then": {"properties": opened.pop(_OPEN)},
        "else": {"properties": places},
        "required": ["name"],  # all other keys can be inherited
        "title": "dsd-lab spec",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": _without_marks(definitions | opened),
        **_without_marks(schema),
    }


def _described(content: Schema) -> Schema:
    """A top-level key without the content of `base`, `variants` and the like."""
    return content if not _takes_anything(content) else {"description": content["description"]}


def _takes_anything(content: Schema) -> bool:
    return content.get("type") == "object" or "$ref" in content.get("items", {})


def _named(definition: str) -> Schema:
    """A mapping from names to entries of one kind."""
    return {
        "type": "object",
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }


def _grid(definitions: Schema) -> Schema:
    """Axes: lists of values by key path of a trial's field, or of a named entry inside a field."""
    axes, inside = {}, {}
    for section, content in definitions["Trial"]["properties"].items():
        axes[section] = _axis({"$ref": content["$ref"]}, content.get("description"))
        for name, field in definitions[content["$ref"].rpartition("/")[2]]["properties"].items():
            axes[f"{section}.{name}"] = _axis(field, field.get("description"))
            if field.get("type") == "object":
                inside[rf"^{re.escape(f'{section}.{name}.')}"] = {"type": "array", "minItems": 1}
    return {"type": "object", "additionalProperties": False, "properties": axes, "patternProperties": inside}


def _axis(value: Schema, description: str | None) -> Schema:
    described = {} if description is None else {"description": description}
    notes = ("description", "default", "title")
    return {"type": "array", "minItems": 1, "items": {k: v for k, v in value.items() if k not in notes}, **described}


def _close_options(definitions: Schema) -> None:
    """Restrict options to those of the loaded parts."""
    options: Schema = {}
    for part in plugin_parts():
        if part.options is not None:
            options[part.name] = part.options.model_json_schema()
            definitions |= options[part.name].pop("$defs", {})
    for content in definitions.values():
        if "options" in content["properties"]:
            about = content["properties"]["options"]
            about |= {"properties": options, "additionalProperties": False, PART_KIND: "options"}


def _opened(definitions: Schema) -> Schema:
    """Renamed copies of the definitions that name parts, which accept any name of a part and any options."""
    concerned = {name for name, content in definitions.items() if _marked(content)}
    while more := {n for n, content in definitions.items() if _refers(content) & concerned} - concerned:
        concerned |= more
    return {f"{_OPEN}{name}": _open(definitions[name], concerned) for name in sorted(concerned)}


def _marked(node: Any) -> bool:
    if isinstance(node, dict):
        return PART_KIND in node or any(map(_marked, node.values()))
    return isinstance(node, list) and any(map(_marked, node))


def _refers(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].rpartition("/")[2]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_refers, node.values()))
    return set().union(*map(_refers, node)) if isinstance(node, list) else set()


def _open(node: Any, concerned: set[str]) -> Any:
    if isinstance(node, list):
        return [_open(entry, concerned) for entry in node]
    if not isinstance(node, dict):
        return node
    if node.get(PART_KIND) == "options":
        return node | {"additionalProperties": {"type": "object"}}
    if PART_KIND in node:  # known names stay, for completion
        notes = {key: node[key] for key in ("description", "default", "title") if key in node}
        known = [{"enum": node["enum"]}] if "enum" in node else []
        return notes | {"anyOf": [*known, {"type": "string", "pattern": PART_NAME}]}
    made = {key: _open(value, concerned) for key, value in node.items()}
    if isinstance(target := node.get("$ref"), str) and (name := target.rpartition("/")[2]) in concerned:
        made["$ref"] = f"#/$defs/{_OPEN}{name}"
    return made


def _without_marks(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_marks(value) for key, value in node.items() if key != PART_KIND}
    return [_without_marks(entry) for entry in node] if isinstance(node, list) else node
