"""`dsd-lab schema`: the JSON Schema of a spec file, for completion in editors."""

from __future__ import annotations

import argparse
from typing import Any

from dsd_lab.cli.options import print_json
from dsd_lab.errors import OK
from dsd_lab.specs.sweep import Sweep
from dsd_lab.specs.trial import Trial


def run(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    print_json(spec_schema())
    return OK


def spec_schema() -> dict[str, Any]:
    """The schema of a file: a sweep whose base, variants and profiles hold a trial's fields."""
    schema, trial = Sweep.model_json_schema(by_alias=True), Trial.model_json_schema()
    properties, definitions = schema["properties"], schema.setdefault("$defs", {})
    definitions |= trial.pop("$defs", {})
    definitions["Trial"] = trial
    why = {"type": "string", "description": "What this variant shows."}
    definitions["Variant"] = {**trial, "properties": {"why": why, **trial["properties"]}}
    properties["base"] |= {"$ref": "#/$defs/Trial"}
    properties["variants"]["additionalProperties"] = {"$ref": "#/$defs/Variant"}
    keys = [k for k in properties if k not in ("profiles", "profile", "schema", "name")]
    properties["profiles"]["additionalProperties"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {k: {"$ref": f"#/properties/{k}"} for k in keys},
    }
    properties["extends"] = {
        "type": "string",
        "description": "A spec file, in this file's folder or below, that this one inherits from.",
    }
    schema["required"] = ["name"]  # the rest can be inherited
    schema["title"] = "dsd-lab spec"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
