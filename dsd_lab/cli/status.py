"""`dsd-lab status`: show all sweeps in the home folder and their trials' states; for one sweep also its history."""

from __future__ import annotations

import argparse
import shlex
import time
from collections import Counter
from typing import Any

from dsd_lab.cli.console import LabConsole, table_console
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK
from dsd_lab.files.printable import say
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_manifests
from dsd_lab.home.revisions import revisions
from dsd_lab.home.sweep_records import Entry, Manifest, Revision
from dsd_lab.home.trial_folder import OTHER_IMAGES, STATES, TrialFolder, state_notes
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.specs.yaml_scalars import flow
from dsd_lab.training_code import training_code

Row = dict[str, Any]
_MAX_SHOWN = 3
"""Settings in the row of a trial that was trained singly."""


def _row(
    folder: TrialFolder, code: str, described: TrialRecord | None, entry: Entry | None, manifest: Manifest, other: bool
) -> Row:
    """A trial. Without an entry, `train` trained it with other settings than its sweep's."""
    status = folder.status()
    own = {} if entry is not None or described is None else _own_settings(described, manifest)
    shown = [f"{key}={flow(value)}" for key, value in own.items()]
    more = [f"{len(shown) - _MAX_SHOWN} more settings"] if len(shown) > _MAX_SHOWN else []
    alone = f"{folder.id if described is None else described.name} ({', '.join(['trained singly', *shown[:_MAX_SHOWN], *more])})"
    return {
        "id": folder.id,
        "name": alone if entry is None else entry.name,
        "state": OTHER_IMAGES if other else folder.state(code, status),
        "step": status.step,
        "steps": status.steps if entry is None else entry.steps,
        "imported": folder.imported() is not None,
    } | ({"settings": own} if entry is None else {})


def _own_settings(described: TrialRecord, manifest: Manifest) -> dict[str, Any]:
    """Fields by dotted key in which a trial differs from the sweep's most similar one; all of its overrides if there is none."""
    same = [e for e in manifest.trials if e.variant == described.variant]
    if not same:
        return described.overrides
    like = max(same, key=lambda e: (e.point == described.point, e.seed == described.seed))
    own, others = described.canonical, like.canonical
    names = [(section, name) for section in own | others for name in own.get(section, {}) | others.get(section, {})]
    return {
        f"{section}.{name}": own.get(section, {}).get(name, described.fields.get(section, {}).get(name))
        for section, name in names
        if own.get(section, {}).get(name) != others.get(section, {}).get(name)
    }


def _history(home: Home, key: str) -> list[dict[str, Any]]:
    """Revisions of a sweep's settings, the latest requested last."""
    return [revision.model_dump() for revision in revisions(home.sweep_folder(key))]


def _print_history(console: LabConsole, found: list[Revision]) -> None:
    """Print a row per revision, followed by its changes from the previous one."""
    if not found:
        return
    console.print("history, the present settings last:")
    for revision in found:
        runs = revision.runs
        requested = f"requested {len(runs)} times, last" if len(runs) > 1 else "requested"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(runs[-1].at)) if runs else "at an unknown date"
        command = next((run.command for run in reversed(runs) if run.command), None)
        count = len(revision.trials)
        console.print(
            f"  {revision.number}  {requested} {when}, {count} {'trial' if count == 1 else 'trials'}: "
            f"{command or 'command not recorded'}",
            soft_wrap=True,
        )
        if revision.changes:
            console.print(f"     changes {revision.changes}", soft_wrap=True)


def run(arguments: argparse.Namespace) -> int:
    """Print states; reads only files."""
    home, code = home_of(arguments), training_code()
    sweeps: list[dict[str, Any]] = []
    wanted = home.manifests().values() if arguments.sweep is None else find_manifests(home, arguments.sweep)
    for manifest in wanted:
        key = manifest.key
        entries: dict[str, Entry | None] = dict.fromkeys(manifest.named) | {e.id: e for e in manifest.trials}
        order = [*manifest.ids, *(i for i in manifest.kept if entries[i] is None)]
        described = {i: home.trial(i).description() for i in order}
        others = other_images({i: d for i, d in described.items() if d is not None and entries[i] is not None})
        trials = [_row(home.trial(i), code, described[i], entries[i], manifest, i in others) for i in order]
        sweeps.append(
            {
                "sweep": key,
                "set": manifest.set,
                "imported": manifest.imported is not None,
                "states": dict(Counter(t["state"] for t in trials)),
                "trials": trials,
            }
            | ({"revisions": _history(home, key)} if arguments.sweep else {})
        )
    if arguments.json:
        print_json({"home": str(home.root.resolve()), "sweeps": sweeps})
        return OK
    console = table_console()
    if not sweeps:
        console.print(f"no sweep has been run in {home.root}", highlight=False)
    for sweep in sweeps:
        counts = ", ".join(f"{sweep['states'][s]} {s}" for s in STATES if s in sweep["states"])
        marks = [*(["imported"] if sweep["imported"] else []), *(f"--set {shlex.quote(text)}" for text in sweep["set"])]
        marked = f" ({', '.join(marks)})" if marks else ""
        console.print(f"{sweep['sweep']}{marked}: {counts}", highlight=False, soft_wrap=True)
        rows = [
            (trial["id"], trial["name"], trial["state"] + (" (imported)" if trial["imported"] else ""))
            for trial in sweep["trials"]
        ]
        name, state = (max((len(row[column]) for row in rows), default=0) for column in (1, 2))
        for trial, row in zip(sweep["trials"], rows, strict=True):  # faster than a rich table for 2,000 rows
            say(f"  {row[0]}  {row[1]:<{name}}  {row[2]:<{state}}  {trial['step']:,}/{trial['steps']:,}")
        if arguments.sweep is not None:
            _print_history(console, revisions(home.sweep_folder(sweep["sweep"])))
    for note in state_notes((trial["state"] for sweep in sweeps for trial in sweep["trials"]), code):
        console.print(note, highlight=False, soft_wrap=True)
    return OK
