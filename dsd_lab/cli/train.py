"""`dsd-lab train`: train one trial in this process. Needs no Ray, and with `--no-tracking` no MLflow."""

from __future__ import annotations

import argparse
from typing import Any

from dsd_lab.cli.console import table_console
from dsd_lab.cli.interrupt import acknowledge_signals
from dsd_lab.cli.options import command_line, home_of, plan_of, print_json
from dsd_lab.errors import OK, TRIALS_FAILED, BadInput
from dsd_lab.evaluation.reference import check_files
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.ownership import refuse_links
from dsd_lab.home.trial_folder import ENDED
from dsd_lab.planning.data_check import check_data
from dsd_lab.planning.requirements import missing_data, missing_weights
from dsd_lab.runs.continuity import refuse_other_code
from dsd_lab.runs.data_shelf import DataShelf, refuse_other_images
from dsd_lab.runs.signals import StopSignals
from dsd_lab.runs.torchrun import gathered, torchrun_rank, with_its_processes
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation
from dsd_lab.store.uri import chosen_uri, refuse_unsuitable


def run(arguments: argparse.Namespace) -> int:
    """Train a trial and make its evaluations."""
    plan, home = plan_of(arguments), home_of(arguments)
    variants = [t for t in plan.trials if t.variant == arguments.variant]
    if not variants:
        known = list(plan.spec.variants)
        raise BadInput(
            f"--variant {arguments.variant}: no such variant in this spec{did_you_mean(arguments.variant, known)}"
        )
    chosen = [t for t in variants if arguments.seed is None or t.seed == arguments.seed]
    if not chosen:
        raise BadInput(
            f"--seed {arguments.seed}: not a seed of this spec; known: {', '.join(str(s) for s in plan.spec.seeds)}"
        )
    trial, rank = chosen[0], torchrun_rank()
    if rank is not None:
        trial = with_its_processes(trial)
    if rank:
        return _follow(home, trial, plan.spec.evaluate, rank)
    for missing in missing_data(plan):
        raise BadInput(f"{plan.path}: {missing}")
    for missing in missing_weights(plan):
        raise BadInput(f"{plan.path}: {missing}")
    check_files(plan.spec.evaluate, home)
    shelf = DataShelf()
    refuse_other_images(home, [trial], shelf)
    if not arguments.no_tracking:
        refuse_unsuitable(chosen_uri(arguments.tracking_uri), home.root)
    home.prepare()
    refuse_links([home.sweep_folder(plan.key), home.trial(trial.id).root])
    refuse_other_code(home, [trial], arguments.allow_code_change)
    if home.trial(trial.id).is_locked():
        raise BadInput(f"{trial.name}: another process is training it; `dsd-lab logs {trial.id}` shows its progress")

    for line in check_data(home, [trial], plan.spec.evaluate, opened=lambda data: shelf.load(data, home)):
        say(line, error=arguments.json)
    manifest = manifest_of(plan)
    recorded = home.keep_trial(trial.id, manifest, command_line())  # `gc` deletes trials that no sweep names

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dsd_lab.runs.peers import started_here
    from dsd_lab.runs.run_trial import run_trial

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    state = "pending"
    console = table_console(stderr=arguments.json)
    team = started_here if rank is None else gathered
    with (
        Progress(*columns, console=console, disable=arguments.json) as bar,
        StopSignals() as stop,
        acknowledge_signals(lambda line: console.print(line, soft_wrap=True)),
    ):
        task = bar.add_task(trial.name, total=trial.fields.training.steps)

        def evaluating(how_far: str) -> None:
            bar.update(task, description=f"{trial.name}: {how_far}")

        for progress in run_trial(home, trial, plan.spec.evaluate, shelf, stop, evaluating, team):
            state = progress.state
            bar.update(task, completed=progress.step)
    if not arguments.no_tracking and state != "interrupted":
        from dsd_lab.store.faults import StoreUnavailable
        from dsd_lab.store.mlflow_store import Store

        try:
            Store(home, arguments.tracking_uri).sync(manifest)
        except StoreUnavailable as error:
            say(f"dsd-lab: {error}; nothing is lost: `dsd-lab report` stores it", error=True)
    folder = home.trial(trial.id)
    answer: dict[str, Any] = {
        "id": trial.id,
        "variant": trial.variant,
        "seed": trial.seed,
        "state": state,
        "folder": str(folder.root),
    }
    answer |= {
        "error": folder.status().error,
        "evaluations": {k: e.model_dump() for k, e in folder.evaluations().items()},
    }
    if arguments.json:
        print_json(answer)
    else:
        say(f"{trial.name}: {state}" + (f": {answer['error']}" if answer["error"] else ""))
        say(f"trial {trial.id} in {folder.root}")
        if damaged := folder.status().damaged:
            say(f"it skipped damaged checkpoints: {', '.join(damaged)}")
        if trial.id not in recorded.ids:
            say(
                f"it is not among the trials of the last sweep {plan.key}: reports leave it out, and it is kept until `rm`"
            )
    if state == "interrupted":
        return stop.exit_code
    return TRIALS_FAILED if state == "failed" else OK


def _follow(home: Home, trial: PlannedTrial, evaluations: list[Generation], rank: int) -> int:
    """Train and sample as a torchrun rank other than the leader, which does all output."""
    from dsd_lab.runs.peers import follow
    from dsd_lab.runs.trial_evaluations import draws, missing_evaluations

    folder = home.trial(trial.id)
    state = folder.state()
    missing = missing_evaluations(folder, trial, evaluations).values() if state == "done" else ()
    if state in ENDED and not any(draws(e, trial) for e in missing):
        return OK  # as the leader finds
    with StopSignals() as stop:
        follow(home, trial, DataShelf(), "env:", rank, stop)
    return OK if stop.arrived is None else stop.exit_code
