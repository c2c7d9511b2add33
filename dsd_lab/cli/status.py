"""`dsd-lab status`: every sweep in the home folder and the states of its trials."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import table_console
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.lookup import find_manifests
from dsd_lab.home.trial_folder import OTHER_IMAGES, STATES, TrialFolder, state_notes
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


def run(arguments: argparse.Namespace) -> int:
    """Show states; reads files only."""
    home, code = home_of(arguments), training_code()
    sweeps: list[dict[str, Any]] = []
    wanted = home.manifests().values() if arguments.sweep is None else find_manifests(home, arguments.sweep)
    for manifest in wanted:
        trials, key = [], manifest["key"]
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
    for note in state_notes((trial["state"] for sweep in sweeps for trial in sweep["trials"]), code):
        console.print(note, highlight=False, soft_wrap=True)
    return OK
