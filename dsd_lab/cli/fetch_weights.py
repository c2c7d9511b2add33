"""`dsd-lab fetch-weights`: downloads weights of others, and only what is pinned."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.evaluation.pretrained import WEIGHTS, check_weights, fetch, weights_path
from dsd_lab.files.printable import say
from dsd_lab.specs.messages import did_you_mean

_USUAL = "inception"
"""What is fetched where no name is given; the others are larger."""


def run(arguments: argparse.Namespace) -> int:
    """Download weights into the home folder unless they are there."""
    home = home_of(arguments)
    for name in arguments.names:
        if name not in WEIGHTS:
            raise BadInput(f"{name}: no such weights{did_you_mean(name, list(WEIGHTS))}")
    files = {name: weights_path(name, home) for name in arguments.names or [_USUAL]}
    present = [name for name, path in files.items() if path.exists()]
    for name in present:
        check_weights(name, files[name])
    if len(present) < len(files):
        home.prepare()
    for name in [name for name in files if name not in present]:
        fetch(name, files[name], progress=not arguments.json)
    if arguments.json:
        print_json({"weights": {n: {"path": str(p), "sha256": WEIGHTS[n].sha256} for n, p in files.items()}})
        return OK
    for name, path in files.items():
        say(f"{name}: {'already present' if name in present else 'downloaded'}, SHA-256 verified: {path.resolve()}")
    return OK
