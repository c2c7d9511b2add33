"""`dsd-lab prepare`: decode, resize and crop a data set once, in a form that training reads at random."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_lab.cli.data import is_spec, trials_of
from dsd_lab.cli.options import place_of, print_json, program
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.runs.data_shelf import ReadProgress
from dsd_lab.specs.data import NAME
from dsd_lab.specs.identity import data_name, trial_id
from dsd_lab.specs.trial import Data, Trial
from dsd_lab.specs.yaml_scalars import flow
from dsd_lab.units import readable

if TYPE_CHECKING:
    from dsd_lab.core.data.prepared import Manifest


def run(arguments: argparse.Namespace) -> int:
    """Write the set, resume writing it, or check a complete one."""
    trial, out = _trial(arguments), place_of(arguments.out, "--out")
    name = data_name(trial)
    if name not in (out.name, trial.data.hub) and not re.fullmatch(NAME, name):
        raise BadInput(
            f"--out {out}: the folder must be called {name!r}, like the data set, since data.name does not allow this name"
        )

    from dsd_lab.core.data.progress import listening
    from dsd_lab.core.preparing.write import prepare

    with listening(ReadProgress(str(out))):
        workers = arguments.workers or os.cpu_count() or 1
        made = prepare(trial.data, name, out, arguments.jpeg, workers)
    size = sum(path.stat().st_size for path in out.iterdir())
    held = "the source's own split" if made.holdout is None else f"{100 * made.holdout:g} % of every class"
    overrides = _overrides(trial, made, out)
    if arguments.json:
        answer = {"folder": str(out), "bytes": size, "train_with": overrides}
        print_json(answer | made.model_dump(exclude={"levels", "blocks", "format"}))
        return OK
    channels, height, width = made.shape
    say(f"{out}: {made.count:,} images of {channels} x {height} x {width}, {readable(size)}, checked; held out: {held}")
    if made.damaged:
        say(f"{len(made.damaged)} damaged images are left out, such as {made.damaged[0]}")
    say(f"fingerprint: {made.fingerprint}" + (" (that of the source)" if made.form == "array" else ""))
    if made.form == "jpeg":
        say(
            "JPEG is lossy: the images differ from the source's, so trials on them have other ids; set data.revision to a new name"
        )
    if not is_spec(arguments):
        given = trial.data.model_dump(exclude_defaults=True) | {"name": name} | overrides
        say(f"train on it: data: {flow(given)}")
        return OK
    moved = trial.model_copy(update={"data": Data.model_validate(trial.data.model_dump() | overrides)})
    if made.form == "array" and trial_id(moved, 0) != trial_id(trial, 0):  # a plug-in's source is part of a trial's id
        say("trials on it have other ids than trials on the source")
    words = " ".join(f"--set {shlex.quote(f'base.data.{key}={flow(value)}')}" for key, value in overrides.items())
    say(f"next: {program(arguments)[0]} sweep {shlex.quote(arguments.spec)} {words}")
    return OK


def _trial(arguments: argparse.Namespace) -> Trial:
    """The trial whose data set is prepared."""
    fields: dict[str, object] = {} if arguments.size is None else {"size": arguments.size}
    if is_spec(arguments):
        arguments.set = [*arguments.set, *(f"base.data.{key}={value}" for key, value in fields.items())]
    trials = trials_of(arguments, **fields, **({"crop": "centre"} if fields else {}))
    if len(trials) > 1:
        raise BadInput(f"{arguments.spec}: uses {len(trials)} data sets; choose one with --profile or --set")
    (trial,) = trials
    if trial.data.source == "prepared":
        raise BadInput(f"{trial.data.path}: is a prepared set already; name its source")
    return trial


def _overrides(trial: Trial, made: Manifest, out: Path) -> dict[str, object]:
    """Fields of `data` with which a spec's trials read the prepared set and keep their ids."""
    words: dict[str, object] = {"source": "prepared", "path": str(out)}
    if data_name(trial) not in (out.name, trial.data.hub):
        words["name"] = data_name(trial)
    if trial.data.source == "idx" and trial.data.holdout != Data().holdout:
        words["holdout"] = Data().holdout  # not part of the id of a set that has its own split
    if made.form == "jpeg":
        words["revision"] = f"{trial.data.revision}-jpeg{made.quality}"
    return words
