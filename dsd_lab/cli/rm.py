"""`dsd-lab rm`: delete a sweep's record and the trials that no other sweep names."""

from __future__ import annotations

import argparse

from dsd_lab.cli.gc import print_foreign, print_items
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.garbage import foreign_trials, forget_sweep, sweep_trials
from dsd_lab.home.revisions import ever_named
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.units import readable


def run(arguments: argparse.Namespace) -> int:
    """Show what would be deleted, and delete it with `--yes`."""
    home = home_of(arguments)
    manifests = home.manifests()
    named = [key for key, m in manifests.items() if arguments.sweep in (key, m.name)]
    # A deletion never guesses: unlike `report`, it does not default to the latest profile.
    if arguments.sweep in named:
        named = [arguments.sweep]
    if len(named) != 1:
        what = (
            f"{len(named)} sweeps have this name; choose one: {', '.join(named)}"
            if named
            else f"no such sweep in {home.root}{did_you_mean(arguments.sweep, list(manifests))}"
        )
        raise BadInput(f"{arguments.sweep}: {what}")
    key = named[0]
    if home.sweep_is_running(key):
        raise BadInput(f"sweep {key!r} is running in {home.root}; stop it first")
    trials = sweep_trials(home, key)
    held = [t for t in trials if home.trial(t.path.name).is_locked()]
    going = [t for t in trials if t not in held]
    shared = len(manifests[key].named | ever_named(home.root).get(key, set())) - len(trials)
    if arguments.yes:
        left = forget_sweep(home, key, going)
        held, going = [*held, *left], [t for t in going if t not in left]
    total = sum(t.bytes for t in going)
    if arguments.json:
        rows = [t.row() for t in going]
        answer = {"sweep": key, "freed": arguments.yes, "bytes": total, "items": rows}
        print_json(answer | {"held": [t.path.name for t in held], "kept": shared})
        return OK
    print_items(home, going)
    for trial in held:
        say(f"kept, in use by another process: {trial.path.name}")
    print_foreign({trial: names for trial, names in foreign_trials(home).items() if trial in manifests[key].named})
    if shared:
        say(
            f"{shared} of its trials are kept: another sweep names them, they were never started, or their folders have foreign files"
        )
    if arguments.yes:
        say(f"{key} deleted, {readable(total)} freed; its report and its runs in MLflow stay")
    else:
        say(f"{key} would be deleted and {readable(total)} freed; nothing was deleted; add --yes to delete")
    return OK
