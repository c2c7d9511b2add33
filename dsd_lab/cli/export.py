"""`dsd-lab export`: write a sweep to a folder that another home folder can import."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK
from dsd_lab.files.printable import say
from dsd_lab.home.exporting import export_sweep, index_summary
from dsd_lab.home.lookup import find_manifest
from dsd_lab.units import readable


def run(arguments: argparse.Namespace) -> int:
    """Export a sweep."""
    home, out = home_of(arguments), place_of(arguments.out, "--out")
    manifest = find_manifest(home, arguments.sweep, None)
    index = export_sweep(
        home, manifest, out, arguments.weights, arguments.anonymous, pictures=not arguments.no_pictures
    )
    summary = index_summary(index)
    if arguments.json:
        print_json(summary | {"folder": str(out.resolve())})
        return OK
    say(f"{summary['sweep']}: {summary['trials']} trials, {readable(summary['bytes'])} in {out.resolve()}")
    if not arguments.weights:
        say("without weights: enough for the report, but not for sampling; --weights adds the newest checkpoints")
    return OK
