"""`dsd-lab specs`: list the shipped specs, and whether their images are present."""

from __future__ import annotations

import argparse
import re
from typing import Any

from dsd_lab.cli.options import print_json, program
from dsd_lab.errors import OK
from dsd_lab.files.printable import say
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import FOLDER, shipped_names
from dsd_lab.specs.sweep import Plan


def run(arguments: argparse.Namespace) -> int:
    """List the specs."""
    rows = [_row(load_sweep(FOLDER / f"{name}.yaml")) for name in shipped_names()]
    if arguments.json:
        print_json({"specs": rows})
        return OK
    for row in rows:
        say(f"{row['name']}: {row['trials']} trials; {'; '.join(map(_data_words, row['data']))}")
        say(f"  {row['question']}")
    command, at = program(arguments)
    say(f"next: {command} plan {rows[0]['name']}{at}, or {command} init --from {rows[0]['name']}{at} to edit a copy")
    return OK


def _row(plan: Plan) -> dict[str, Any]:
    why = " ".join(plan.spec.why.split())
    return {
        "name": plan.path.stem,
        "file": str(plan.path),
        "question": re.split(r"(?<=[.?!])\s", why)[0],
        "trials": len(plan.trials),
        "profile": plan.profile,
        "profiles": list(plan.spec.profiles),
        "data": _data(plan),
    }


def _data(plan: Plan) -> list[dict[str, Any]]:
    """Datasets of the trials; `here` is None for those of the Hub, which are downloaded on use."""
    found = []
    every = (t.fields.data for t in plan.trials)
    for data in {(d.source, d.path, d.hub): d for d in every}.values():
        place: dict[str, Any] = {"source": data.source, "path": data.path, "hub": data.hub}
        here = None if data.hub is not None else data.is_there
        found.append(place | {"here": here, "from": plan.spec.data_from or None})
    return found


def _data_words(data: dict[str, Any]) -> str:
    if data["hub"] is not None:
        return f"images of the Hugging Face Hub, {data['hub']}"
    if data["path"] is None:
        return f"{data['source']}, shipped with scikit-learn" if data["source"] == "digits" else str(data["source"])
    if data["here"]:
        return f"images in {data['path']}"
    return f"no images in {data['path']} yet" + (f": {data['from']}" if data["from"] else "")
