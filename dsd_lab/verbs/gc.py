"""`dsd-lab gc`: free what no recorded sweep needs."""

from __future__ import annotations

import argparse

from dsd_lab.errors import OK
from dsd_lab.home import Home
from dsd_lab.housekeeping import Freeable, garbage, held_trials, readable
from dsd_lab.training_code import training_code
from dsd_lab.verbs.common import home_of, print_json


def run(arguments: argparse.Namespace) -> int:
    """Show what can go, and with `--yes` let it go."""
    home = home_of(arguments)
    found, held = garbage(home, training_code()), held_trials(home)
    left = [item for item in found if not item.free()] if arguments.yes else []
    freed = [item for item in found if item not in left]
    if arguments.json:
        print_json(
            {
                "home": str(home.root.resolve()),
                "freed": arguments.yes,
                "bytes": sum(item.bytes for item in freed),
                "items": [item.row() for item in freed],
                "held": sorted({*held, *(item.path.name for item in left)}),
            }
        )
        return OK
    print_items(home, freed)
    if held or left:
        print(f"left alone, since somebody works on it: {', '.join(sorted({*held, *(i.path.name for i in left)}))}")
    total = readable(sum(item.bytes for item in freed))
    if arguments.yes or not freed:
        print(f"freed {total}" if freed else "nothing to free")
    else:
        print(f"{total} can be freed; nothing was touched, add --yes to free it")
    return OK


def print_items(home: Home, items: list[Freeable]) -> None:
    """One line a thing that goes."""
    for item in items:
        print(f"{item.kind:<10} {readable(item.bytes):>9}  {item.path.relative_to(home.root)}: {item.why}")
