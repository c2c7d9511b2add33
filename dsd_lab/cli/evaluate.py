"""`dsd-lab evaluate`: evaluate finished trials with other settings, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dsd_lab.cli.console import table_console
from dsd_lab.cli.interrupt import acknowledge_signals
from dsd_lab.cli.options import home_of, print_json, with_processes
from dsd_lab.errors import OK, TRIALS_FAILED, BadInput
from dsd_lab.evaluation.reference import check_files
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.ownership import refuse_links
from dsd_lab.home.plugins import planned_again, recorded_fields
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.runs.data_shelf import DataShelf, refuse_changed_images
from dsd_lab.runs.signals import StopSignals
from dsd_lab.specs.checks import lacking_guidance
from dsd_lab.specs.evaluate_list import applies, of_trial
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import spec_file
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.training import lacking_average
from dsd_lab.specs.trial import Generation

_SETTINGS = (
    *("protocol", "sampler", "steps", "guidance", "weights", "checkpoint", "precision", "images", "labels"),
    *("extractor", "reference", "metrics"),
)
_STOPPING = "stopping after the current block of images; the same command resumes; Ctrl-C again stops at once"


def run(arguments: argparse.Namespace) -> int:
    """Evaluate trials and add the results to their folders and to the store."""
    home = home_of(arguments)
    evaluations = _evaluations(arguments)
    folders = list({f.id: f for f in (find_trial(home, prefix) for prefix in arguments.trials)}.values())
    trials = [with_processes(_planned(home, folder), arguments.processes) for folder in folders]
    for trial in trials:
        if not any(applies(e, trial.fields) for e in evaluations):
            raise BadInput(f"{trial.id}: {trial.variant!r} has no denoiser to sample from; choose other --metrics")
        for evaluation in evaluations:
            missing = lacking_average(evaluation.weights, trial.fields.training)
            if missing is not None:
                raise BadInput(f"{trial.id}: weights {evaluation.weights!r}: {trial.name!r} {missing}")
            if (unguided := lacking_guidance(evaluation.guidance, trial.fields)) is not None:
                raise BadInput(f"{trial.id}: guidance: {trial.name!r} {unguided}")
    refuse_links(folder.root for folder in folders)
    for folder, trial in zip(folders, trials, strict=True):
        _refuse_absent(folder, of_trial(evaluations, trial.fields, folder.saved_steps()))
    check_files(evaluations, home)
    shelf = DataShelf()
    for folder, trial in zip(folders, trials, strict=True):
        refuse_changed_images(home, folder, trial.fields, shelf)

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dsd_lab.runs.run_trial import run_trial

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    answers = []
    console = table_console(stderr=arguments.json)
    with (
        Progress(*columns, console=console, disable=arguments.json) as bar,
        StopSignals() as stop,
        acknowledge_signals(lambda line: console.print(line, soft_wrap=True), _STOPPING),
    ):
        for folder, trial in zip(folders, trials, strict=True):
            if stop():
                break
            wanted = {evaluation_id(e): e for e in of_trial(evaluations, trial.fields, folder.saved_steps())}
            before = folder.evaluations()
            task = bar.add_task(trial.name, total=len(wanted.keys() - before.keys()))

            def on_progress(text: str, task: Any = task, name: str = trial.name) -> None:
                bar.update(task, description=f"{name}: {text}")

            state = "done"
            for progress in run_trial(home, trial, list(wanted.values()), shelf, stop, on_progress):
                state = progress.state
                bar.update(task, completed=len((folder.evaluations().keys() - before.keys()) & wanted.keys()))
            error = folder.status().error
            if state == "failed":  # only the evaluation failed; the trained trial is unchanged
                folder.write_status(state="done", error=None)
            found = {key: content.model_dump() for key, content in folder.evaluations().items() if key in wanted}
            answers.append(
                {
                    "id": folder.id,
                    "variant": trial.variant,
                    "seed": trial.seed,
                    "state": state,
                    "error": error,
                    "new": sorted(found.keys() - before.keys()),
                    "evaluations": found,
                }
            )
    if not arguments.no_tracking:
        _store(home, {folder.id for folder in folders}, arguments.tracking_uri)
    if arguments.json:
        print_json({"trials": answers})
    else:
        for answer in answers:
            _print(answer)
    if stop():
        return stop.exit_code
    return OK if all(a["state"] == "done" for a in answers) else TRIALS_FAILED


def _refuse_absent(folder: TrialFolder, evaluations: list[Generation]) -> None:
    """Every checkpoint that is asked for must be there.

    Raises:
        BadInput: one is not; the line says which are.
    """
    saved = folder.saved_steps()
    for step in (e.checkpoint for e in evaluations):
        if isinstance(step, int) and step not in saved:
            there = ", ".join(f"{known:,}" for known in saved) or "none"
            raise BadInput(f"{folder.id}: no checkpoint of step {step:,}; there are {there} (observation.keep_every keeps more)")  # fmt: skip


def _evaluations(arguments: argparse.Namespace) -> list[Generation]:
    """Evaluations of the spec, or those given by the options; both are validated by the same rules."""
    given = {name: getattr(arguments, name) for name in _SETTINGS if getattr(arguments, name) is not None}
    if arguments.spec is not None:
        if given:
            raise BadInput(
                f"--{next(iter(given))}: cannot be combined with --spec, whose `evaluate` gives all settings"
            )
        entries = load_sweep(spec_file(arguments.spec), arguments.profile).spec.evaluate
        if not entries:
            raise BadInput(f"{arguments.spec}: has no `evaluate`")
        return entries
    if arguments.profile is not None:
        raise BadInput("--profile: needs --spec")
    return evaluations_from(given)


def evaluations_from(given: dict[str, Any]) -> list[Generation]:
    """Evaluations from options. Error messages name the option instead of the spec's key.

    Raises:
        BadInput: a value is invalid.
    """
    from pydantic import ValidationError

    from dsd_lab.specs.evaluate_list import expanded, with_files
    from dsd_lab.specs.messages import complaints
    from dsd_lab.specs.yaml_document import Document

    marks: dict[tuple[str, ...], str] = {("evaluate", "0", name): f"--{name}" for name in given}
    document = expanded(Document({"evaluate": [given]}, marks))
    made = []
    for place, entry in enumerate(document.values["evaluate"]):
        try:
            made.append(Generation.model_validate(entry))
        except ValidationError as error:
            parts = Document(
                entry, {path[2:]: mark for path, mark in document.marks.items() if path[1:2] == (str(place),)}
            )
            raise BadInput(complaints(error, Generation, parts)[0]) from None
    return with_files(made, document, Path.cwd())


def _planned(home: Home, folder: TrialFolder) -> PlannedTrial:
    """The trial of a folder in the form in which its sweep planned it.

    Raises:
        BadInput: it is not finished.
    """
    described = folder.description()
    if described is None or folder.state() != "done":
        raise BadInput(f"{folder.id}: the trial is {folder.state()}; only a finished one can be evaluated")
    fields = recorded_fields(described, home.root)
    if not fields.data.is_there:
        raise BadInput(f"{folder.id}: data.path: no such folder {fields.data.path}")
    return planned_again(described, fields)


def _store(home: Home, ids: set[str], uri: str | None) -> None:
    """Update the store for every sweep that names one of the trials."""
    sweeps = [m for m in home.manifests().values() if ids & {*m.ids}]
    if sweeps:
        from dsd_lab.store.mlflow_store import Store

        store = Store(home, uri)
        for manifest in sweeps:
            store.sync(manifest)


def _print(answer: dict[str, Any]) -> None:
    new = len(answer["new"])
    note = {
        "failed": f": {answer['error']}",
        "running": ": in use by another process",
        "interrupted": ": stopped; the same command resumes with the images that are drawn",
    }.get(answer["state"], "")
    say(f"{answer['variant']} s{answer['seed']} ({answer['id']}): {new} new of {len(answer['evaluations'])}{note}")
    metrics = {
        (name, content["settings"].get("checkpoint", "last")): value
        for content in answer["evaluations"].values()
        for name, value in content["metrics"].items()
    }
    for (name, step), value in sorted(metrics.items(), key=lambda item: (item[0][0], str(item[0][1]).zfill(10))):
        if "_floor/" not in name:
            say(f"  {name} {value:.4g}" + ("" if step == "last" else f" at step {step:,}"))
