"""`dsd-lab reproduce`: train one trial again in a folder of its own, and compare it with what is recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK, TRIALS_FAILED, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.plugins import planned_again, recorded_fields
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import SCHEMA_VERSION


def run(arguments: argparse.Namespace) -> int:
    """Train a trial again; 0 where it is equal to the bit, else 3."""
    home = home_of(arguments)
    source = home
    if arguments.source is not None:
        source = Home(place_of(arguments.source, "--from"))
        if not (source.root / "export.json").is_file():
            raise BadInput(f"--from {source.root}: has no export.json; name a folder that `dsd-lab export` wrote")
    recorded = find_trial(source, arguments.trial)
    trial = planned(source, recorded, arguments.data)
    if trial.fields.data.path is not None and not Path(trial.fields.data.path).is_dir():
        raise BadInput(f"data.path: no such folder {trial.fields.data.path}; say where the images lie with --data")
    home.prepare()
    own = _own_home(home, trial.id)

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dsd_lab.runs.data_shelf import DataShelf
    from dsd_lab.runs.reproduction import compare
    from dsd_lab.runs.run_trial import run_trial

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=arguments.json) as bar:
        task = bar.add_task(trial.name, total=trial.fields.training.steps)
        for progress in run_trial(own, trial, [], DataShelf()):
            bar.update(task, completed=progress.step)
    again = own.trial(trial.id)
    if again.state() == "failed":
        raise BadInput(f"{trial.name}: could not be trained again: {again.status().error}")
    answer = compare(recorded, again)
    answer = {"id": trial.id, "name": trial.name, "folder": str(again.root), **answer}
    if arguments.json:
        print_json(answer)
    else:
        for line in _lines(answer):
            say(line)
    return OK if answer["equal"] else TRIALS_FAILED


def planned(home: Home, folder: TrialFolder, data: str | None) -> PlannedTrial:
    """The trial as it is recorded.

    Args:
        home: that holds the trial, or an exported folder.
        folder: of the trial.
        data: where its images lie here; None: where they lay.

    Raises:
        BadInput: nothing is recorded, or it is not what a trial of this version has.
    """
    described = folder.description()
    if described is None:
        raise BadInput(f"{folder.root}: has no trial.json: it never started, so that nothing can be compared")
    if (version := described.schema_version) != SCHEMA_VERSION:
        raise BadInput(
            f"{folder.root / 'trial.json'}: was trained under schema version {version}; this program trains by version {SCHEMA_VERSION}, which gives other weights: run its sweep to train it anew"
        )
    fields = recorded_fields(described, home.root)
    if data is not None:
        fields = fields.model_copy(update={"data": fields.data.model_copy(update={"path": str(Path(data).resolve())})})
    return planned_again(described, fields)


def _own_home(home: Home, trial: str) -> Home:
    """A new home folder for one reproduction, with the caches of the home that it is in."""
    number = 1
    while (home.root / "reproductions" / f"{trial}-{number}").exists():
        number += 1
    own = Home(home.root / "reproductions" / f"{trial}-{number}")
    own.prepare()
    home.cache.mkdir(exist_ok=True)
    own.cache.symlink_to(home.cache.resolve())
    return own


def _lines(answer: dict[str, Any]) -> list[str]:
    lines = [f"{answer['name']}, trial {answer['id']}, trained again in {answer['folder']}"]
    for what in ("weights", "records"):
        lines.append(f"{what}: {answer[what]['text']}")
    if not answer["equal"]:
        found = [
            f"{d['what']}: {json.dumps(d['recorded'])} then, {json.dumps(d['now'])} now" for d in answer["differs"]
        ]
        lines.append("what is recorded of both and differs: " + ("; ".join(found) if found else "nothing"))
    return lines
