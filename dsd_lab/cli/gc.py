"""`dsd-lab gc`: free what no recorded sweep needs."""

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
    """Show what can go, and with `--yes` let it go."""
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
        say(f"left alone, since somebody works on it: {', '.join(sorted({*held, *(i.path.name for i in left)}))}")
    print_foreign(foreign)
    for name in linked:
        say(f"left alone, since it is a link: {name}")
    total = readable(sum(item.bytes for item in freed))
    if arguments.yes or not freed:
        say(f"freed {total}" if freed else "nothing to free")
    else:
        say(f"{total} can be freed; nothing was touched, add --yes to free it")
    return OK


def print_items(home: Home, items: list[Freeable]) -> None:
    """One line a thing that goes."""
    for item in items:
        say(f"{item.kind:<10} {readable(item.bytes):>9}  {item.path.relative_to(home.root)}: {item.why}")


def print_foreign(found: dict[str, list[str]]) -> None:
    """One line for each trial that is left alone because of what somebody keeps in its folder."""
    for trial, names in found.items():
        say(f"left alone, since no trial writes what is in its folder: trials/{trial}: {', '.join(names[:5])}")
