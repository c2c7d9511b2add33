"""`dsd-lab latents`: write a trial's latents and spectra to an .npz file."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.outputs import Output


def run(arguments: argparse.Namespace) -> int:
    """Write the file."""
    home = home_of(arguments)
    folder = find_trial(home, arguments.trial)
    if folder.state() != "done":  # checked before the import of torch
        raise BadInput(f"{arguments.trial}: the trial is {folder.state()}; only a finished one can be loaded")
    path = (
        place_of(arguments.out, "--out")
        if arguments.out
        else home.root / "latents" / f"{folder.id}-{arguments.split}.npz"
    )
    if path.is_dir():
        raise BadInput(f"--out {path}: is a folder; give a file")
    Output(home, path.parent, f"--out {path}", file=path.name).check([path.name])

    from dsd_lab.api import export_latents

    arrays = export_latents(home.root, folder.id, path, arguments.split)
    if arguments.json:
        print_json({"trial": folder.id, "file": str(path.resolve()), "arrays": arrays})
        return OK
    say(f"{path.resolve()}: " + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in arrays.items()))
    return OK
