"""`dsd-lab gc`: delete what no recorded sweep needs."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK
from dsd_lab.files.printable import say
from dsd_lab.home.garbage import foreign_trials, garbage, held_trials, linked_folders
from dsd_lab.home.home import Home
from dsd_lab.home.ownership import Freeable
from dsd_lab.training_code import training_code
from dsd_lab.units import readable


def run(arguments: argparse.Namespace) -> int:
    """Show what can be deleted, and delete it with `--yes`."""
    home = home_of(arguments)
    found, held = garbage(home, training_code()), held_trials(home)
    foreign, linked = foreign_trials(home), linked_folders(home)
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
                "foreign": foreign,
                "linked": linked,
            }
        )
        return OK
    print_items(home, freed)
    if held or left:
        say(f"kept, in use by another process: {', '.join(sorted({*held, *(i.path.name for i in left)}))}")
    print_foreign(foreign)
    for name in linked:
        say(f"kept, since it is a link: {name}")
    total = readable(sum(item.bytes for item in freed))
    if arguments.yes or not freed:
        say(f"freed {total}" if freed else "nothing to free")
    else:
        say(f"{total} can be freed; nothing was deleted; add --yes to delete")
    return OK


def print_items(home: Home, items: list[Freeable]) -> None:
    """Print a line per item to delete."""
    for item in items:
        say(f"{item.kind:<10} {readable(item.bytes):>9}  {item.path.relative_to(home.root)}: {item.why}")


def print_foreign(found: dict[str, list[str]]) -> None:
    """Print a line per trial that is kept because of foreign files in its folder."""
    for trial, names in found.items():
        say(f"kept, since its folder has foreign files: trials/{trial}: {', '.join(names[:5])}")
