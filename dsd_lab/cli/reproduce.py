"""`dsd-lab reproduce`: retrain a trial in a separate folder and compare it with its records."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK, TRIALS_FAILED, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.plugins import planned_again, recorded_fields
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import Evaluation
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import SCHEMA_VERSION, Generation


def run(arguments: argparse.Namespace) -> int:
    """Retrain a trial; returns 0 if it is bit-identical, else 3."""
    home = home_of(arguments)
    source = home
    if arguments.source is not None:
        source = Home(place_of(arguments.source, "--from"))
        if not (source.root / "export.json").is_file():
            raise BadInput(f"--from {source.root}: has no export.json; give a folder that `dsd-lab export` wrote")
    recorded = find_trial(source, arguments.trial)
    trial = planned(source, recorded, arguments.data)
    if not trial.fields.data.is_there:
        raise BadInput(f"data.path: no such folder {trial.fields.data.path}; give the folder of the images with --data")
    home.prepare()
    own = _own_home(home, trial.id)
    foreign = source is home and recorded.imported() is not None
    # What others say that they measured is measured again too: the mark of an import goes only where all is the same.
    evaluations = [e for e in map(_settings, recorded.evaluations().values()) if e is not None] if foreign else []

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dsd_lab.runs.data_shelf import DataShelf
    from dsd_lab.runs.reproduction import compare, other_than
    from dsd_lab.runs.run_trial import run_trial

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=arguments.json) as bar:
        task = bar.add_task(trial.name, total=trial.fields.training.steps)
        for progress in run_trial(own, trial, evaluations, DataShelf()):
            bar.update(task, completed=progress.step)
    again = own.trial(trial.id)
    if again.state() == "failed":
        raise BadInput(f"{trial.name}: could not be retrained: {again.status().error}")
    answer = compare(recorded, again)
    answer = {"id": trial.id, "name": trial.name, "folder": str(again.root), **answer}
    if foreign:
        other = other_than(recorded, again)
        answer["imported"] = not (answer["equal"] and other is None and _unmarked(recorded))
        answer["other"] = other
    if arguments.json:
        print_json(answer)
    else:
        for line in _lines(answer):
            say(line)
    return OK if answer["equal"] else TRIALS_FAILED


def _settings(evaluation: Evaluation) -> Generation | None:
    """What an evaluation was made with; None where that is no evaluation of this version."""
    try:
        return Generation.model_validate(evaluation.settings)
    except ValidationError:
        return None


def _unmarked(recorded: TrialFolder) -> bool:
    """Take the mark of an import away; False if another process holds the trial."""
    with recorded.lock() as held:
        if held:
            (recorded.root / "imported.json").unlink(missing_ok=True)
        return held


def planned(home: Home, folder: TrialFolder, data: str | None) -> PlannedTrial:
    """The recorded trial.

    Args:
        home: the home folder of the trial, or an exported folder.
        folder: of the trial.
        data: present folder of its images; None: the recorded one.

    Raises:
        BadInput: nothing is recorded, or the record is invalid in this version.
    """
    described = folder.description()
    if described is None:
        raise BadInput(f"{folder.root}: has no trial.json: the trial was never started, so there is nothing to compare")
    if (version := described.schema_version) != SCHEMA_VERSION:
        raise BadInput(
            f"{folder.root / 'trial.json'}: was trained with schema version {version}, but this program uses version {SCHEMA_VERSION}, which gives other weights; re-run the sweep to retrain it"
        )
    fields = recorded_fields(described, home.root)
    if data is not None:
        fields = fields.model_copy(update={"data": fields.data.model_copy(update={"path": str(Path(data).resolve())})})
    return planned_again(described, fields)


def _own_home(home: Home, trial: str) -> Home:
    """A new home folder for a reproduction, with the caches of the surrounding home."""
    number = 1
    while (home.root / "reproductions" / f"{trial}-{number}").exists():
        number += 1
    own = Home(home.root / "reproductions" / f"{trial}-{number}")
    own.prepare()
    home.cache.mkdir(exist_ok=True)
    own.cache.symlink_to(home.cache.resolve())
    return own


def _lines(answer: dict[str, Any]) -> list[str]:
    lines = [f"{answer['name']}, trial {answer['id']}, retrained in {answer['folder']}"]
    for what in ("weights", "records"):
        lines.append(f"{what}: {answer[what]['text']}")
    if not answer["equal"]:
        found = [
            f"{d['what']}: {json.dumps(d['recorded'])} then, {json.dumps(d['now'])} now" for d in answer["differs"]
        ]
        lines.append("differences in code, versions, machine and data: " + ("; ".join(found) if found else "nothing"))
    if "imported" in answer:
        stays = f"it stays marked as imported: {answer['other'] or 'it'} was not reproduced"
        lines.append(stays if answer["imported"] else "it is not marked as imported any more")
    return lines
