"""`dsd-lab fetch-data`: download data sets by name, with pinned hashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsd_lab.cli.options import place_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.specs.known_data import DATA_SETS
from dsd_lab.specs.near import did_you_mean
from dsd_lab.specs.yaml_scalars import flow
from dsd_lab.units import readable

_FOLDER = Path("data")
"""Relative to the current folder; the shipped specs look for their images there."""


def run(arguments: argparse.Namespace) -> int:
    """Fetch the named sets; without a name, list the known ones."""
    for name in arguments.names:
        if name not in DATA_SETS:
            raise BadInput(f"{name}: no such data set{did_you_mean(name, list(DATA_SETS))}")
    if arguments.out and len(arguments.names) != 1:
        raise BadInput("--out: is the folder of one data set; give exactly one name")
    answer = {name: _facts(name, arguments.out) for name in arguments.names or DATA_SETS}
    for name in arguments.names:
        from dsd_lab.core.preparing.fetch import fetch_data

        known, place = DATA_SETS[name], Path(answer[name]["path"])
        if not arguments.json:
            say(f"{name}: {known.title}; {readable(known.bytes)} from {known.link}")
            say(f"licence: {known.licence}")
        fresh = fetch_data(name, place, progress=not arguments.json)
        answer[name]["fetched"] = fresh
        if not arguments.json:
            say(f"{name}: {'downloaded, hashes as pinned' if fresh else 'already present'}: {place}")
            say(f"train on it: data: {flow({**known.fields, 'path': str(place)})}")
    if arguments.json:
        print_json({"data": answer})
    elif not arguments.names:
        for name, facts in answer.items():
            say(f"{name}: {facts['title']}; {readable(facts['bytes'])}; {facts['link']}")
            say(f"  licence: {facts['licence']}")
    return OK


def _facts(name: str, out: str | None) -> dict[str, Any]:
    known = DATA_SETS[name]
    place = place_of(out, "--out") if out else (_FOLDER / name).absolute()
    facts = {"title": known.title, "licence": known.licence, "link": known.link, "bytes": known.bytes}
    return {"path": str(place), **facts, "files": {file.file: file.sha256 for file in known.downloads}}
