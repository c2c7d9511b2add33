"""`dsd-lab status`: every sweep in the home folder and the states of its trials; of one sweep also its history."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import LabConsole, table_console
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.home import Home
from dsd_lab.home.names import is_date
from dsd_lab.home.revisions import revisions
from dsd_lab.home.trial_folder import OTHER_IMAGES, STATES, TrialFolder, stale_note
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.training_code import training_code


def _alone(folder: TrialFolder, code: str) -> dict[str, Any]:
    """A trial that `train` trained with other settings than its sweep's; its step and name are those of its own files."""
    status, described = folder.status(), folder.description() or {}
    name = f"{described.get('name', folder.id)} (trained alone)"
    steps = int(status.get("steps", 0))
    return {
        "id": folder.id,
        "name": name,
        "state": folder.state(code),
        "step": status.get("step", 0),
        "steps": steps,
        "imported": folder.imported() is not None,
    }


def _wanted(home: Home, name: str | None) -> dict[str, dict[str, Any]]:
    """All recorded sweeps; those of one name where one is given.

    Raises:
        BadInput: none has that name.
    """
    manifests = home.manifests()
    if name is None:
        return manifests
    found = {key: m for key, m in manifests.items() if name in (key, m["name"])}
    if not found:
        raise BadInput(f"{name}: no sweep of this name in {home.root}{did_you_mean(name, list(manifests))}")
    return found


def _history(home: Home, key: str) -> list[dict[str, Any]]:
    """Every revision of a sweep's settings, the one that was asked for last at the end."""
    kept = ("number", "changes", "trials", "runs", "settings")
    return [{name: revision.get(name) for name in kept} for revision in revisions(home.sweep_folder(key))]


def _print_history(console: LabConsole, found: list[dict[str, Any]]) -> None:
    """A row for each revision, with what changed from the one that stood before on a line of its own."""
    if not found:
        return
    console.print("history, the present settings last:")
    for revision in found:
        runs = revision["runs"]
        dates = [run["at"] for run in runs if isinstance(run, dict) and is_date(run.get("at"))]
        asked = f"asked for {len(runs)} times, last" if len(runs) > 1 else "asked for"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(dates[-1])) if dates else "at an unknown date"
        command = next((run["command"] for run in reversed(runs) if isinstance(run, dict) and run.get("command")), None)
        count = len(revision["trials"])
        console.print(
            f"  {revision['number']}  {asked} {when}, {count} {'trial' if count == 1 else 'trials'}: "
            f"{command or 'command not recorded'}",
            soft_wrap=True,
        )
        if revision["changes"]:
            console.print(f"     changes {revision['changes']}", soft_wrap=True)


def run(arguments: argparse.Namespace) -> int:
    """Show states; reads files only."""
    home, code = home_of(arguments), training_code()
    sweeps: list[dict[str, Any]] = []
    for key, manifest in _wanted(home, arguments.sweep).items():
        trials = []
        described = {entry["id"]: home.trial(entry["id"]).description() for entry in manifest["trials"]}
        others = other_images({key: d for key, d in described.items() if d is not None})
        for entry in manifest["trials"]:
            folder = home.trial(entry["id"])
            trials.append(
                {
                    "id": entry["id"],
                    "name": entry["name"],
                    "state": OTHER_IMAGES if entry["id"] in others else folder.state(code),
                    "step": folder.status().get("step", 0),
                    "steps": entry["steps"],
                    "imported": folder.imported() is not None,
                }
            )
        named = {entry["id"] for entry in manifest["trials"]}
        trials += [_alone(home.trial(i), code) for i in manifest.get("kept", []) if i not in named]
        sweeps.append(
            {
                "sweep": key,
                "imported": "imported" in manifest,
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
        console.print(f"{sweep['sweep']}{' (imported)' if sweep['imported'] else ''}: {counts}", highlight=False)
        table = Table(box=None, pad_edge=False, show_header=False)
        for trial in sweep["trials"]:
            table.add_row(
                f"  {trial['id']}",
                trial["name"],
                trial["state"] + (" (imported)" if trial["imported"] else ""),
                f"{trial['step']:,}/{trial['steps']:,}",
            )
        console.print(table)
        _print_history(console, sweep.get("revisions", []))
    if note := stale_note((trial["state"] for sweep in sweeps for trial in sweep["trials"]), code):
        console.print(note, highlight=False, soft_wrap=True)
    return OK
