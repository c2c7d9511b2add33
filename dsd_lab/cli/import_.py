"""`dsd-lab import`: import a sweep that `dsd-lab export` wrote."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import home_of, place_of, print_json, program
from dsd_lab.errors import OK
from dsd_lab.files.printable import say
from dsd_lab.home.importing import import_sweep


def run(arguments: argparse.Namespace) -> int:
    """Import a sweep."""
    home = home_of(arguments)
    done = import_sweep(home, place_of(arguments.folder, "DIR"))
    if arguments.json:
        print_json(vars(done))
        return OK
    skipped = f", {len(done.skipped)} were already there" if done.skipped else ""
    say(f"{done.sweep}: {len(done.added)} trials added to {home.root}, marked as imported{skipped}")
    command, at = program(arguments)
    say(f"next: {command} report {done.sweep}{at}")
    return OK
