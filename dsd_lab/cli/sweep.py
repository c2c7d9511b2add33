"""`dsd-lab sweep`: run unfinished trials, store them, and print the next commands."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from dsd_lab.cli.console import LabConsole
from dsd_lab.cli.forecast import load_forecast
from dsd_lab.cli.interrupt import acknowledge_signals
from dsd_lab.cli.options import command_line, home_of, plan_of, print_json, program, store_option
from dsd_lab.cli.progress import SweepProgress
from dsd_lab.errors import OK, TERMINATED, TRIALS_FAILED, UNEXPECTED, BadInput
from dsd_lab.evaluation.reference import check_files
from dsd_lab.files.locks import locked
from dsd_lab.files.mounts import shared_sqlite_warning
from dsd_lab.files.printable import printable
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.ownership import refuse_links
from dsd_lab.home.trial_folder import ENDED, STOPPED, state_notes
from dsd_lab.planning.data_check import Decode, check_data
from dsd_lab.planning.disk import announce_need
from dsd_lab.planning.requirements import missing_data, missing_weights
from dsd_lab.runs.child_environment import safe_imports
from dsd_lab.runs.continuity import refuse_other_code
from dsd_lab.runs.data_shelf import DataShelf, refuse_other_images
from dsd_lab.runs.open_files import allow_open_files
from dsd_lab.runs.signals import TERMINATING, Terminated, handled, raise_terminated
from dsd_lab.specs.evaluate_list import of_trial
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.sweep import Plan, PlannedTrial
from dsd_lab.store.current import is_current
from dsd_lab.store.uri import chosen_uri, refuse_unsuitable
from dsd_lab.training_code import training_code
from dsd_lab.units import duration

_STORE_SECONDS = 20.0
"""Seconds to finish storing after a stop signal."""

_MIN_FREE = 2**20
"""Free bytes below which a disk counts as full."""


def run(arguments: argparse.Namespace) -> int:
    """Run a spec's unfinished trials."""
    plan, home = plan_of(arguments), home_of(arguments)
    _check_packages(tracking=not arguments.no_tracking)
    allow_open_files()
    _check_data(plan)
    check_files(plan.spec.evaluate, home)
    refuse_other_images(home, plan.trials, DataShelf())
    stopping = None if arguments.stop_collapsed is None else (load_forecast(home), arguments.stop_collapsed)
    home.prepare()
    console = LabConsole(stderr=arguments.json)
    with acknowledge_signals(lambda line: _say(console, line)):
        return _run(home, plan, stopping, arguments, console)


def _run(
    home: Home, plan: Plan, stopping: tuple[Any, float] | None, arguments: argparse.Namespace, console: LabConsole
) -> int:
    unfinished = _unfinished(home, plan, arguments.retry_failed, stopping is not None)
    refuse_links([home.sweep_folder(plan.key), *(home.trial(t.id).root for t in unfinished)])
    decode: Decode = "all" if unfinished else "none"
    for line in check_data(home, unfinished or plan.trials, plan.spec.evaluate, decode=decode):
        _say(console, line)
    uri = chosen_uri(arguments.tracking_uri)
    if not arguments.no_tracking:
        refuse_unsuitable(uri, home.root)
        if warning := shared_sqlite_warning(home.root, uri):
            _say(console, warning)
    with locked(home.sweep_folder(plan.key) / "lock", wait=False) as held:
        if not held:
            raise BadInput(f"sweep {plan.key!r} is already running in {home.root}; `dsd-lab status` shows it")
        whole = plan_of(argparse.Namespace(**{**vars(arguments), "only": None})) if arguments.only else plan
        manifest = manifest_of(whole)
        # Again under the lock: another sweep may have ended some of them.
        todo = unfinished and _unfinished(home, plan, arguments.retry_failed, stopping is not None)
        refuse_other_code(home, todo, arguments.allow_code_change)
        if todo:
            _say(
                console,
                f"{plan.key}: {len(todo)} of {len(_distinct(plan))} trials to run; results go to {home.root}",
            )
            training = [t for t in todo if home.trial(t.id).state() not in ENDED]
            _say(console, announce_need(home, training, training_code()))

        def record() -> None:
            if changes := home.write_manifest(manifest, command_line()):
                _say(console, f"{plan.key}: {changes}")

        code = _execute(home, plan, todo, stopping, arguments, console, record)
    states = _summarise(home, plan, arguments, console)
    ended = (*ENDED, STOPPED) if stopping else ENDED  # with --stop-collapsed, a stopped trial is no failure
    if code == OK and any(state not in (*ended, "stale") for state in states.values()):
        return TRIALS_FAILED
    return code


def _execute(
    home: Home,
    plan: Plan,
    todo: list[PlannedTrial],
    stopping: tuple[Any, float] | None,
    arguments: argparse.Namespace,
    console: LabConsole,
    record: Callable[[], None],
) -> int:
    """Run the trials of `todo`. `record` is called once the sweep is accepted."""
    if not todo:
        record()
    stored = arguments.no_tracking or (not todo and is_current(home, plan.key, arguments.tracking_uri))
    uploader = None if stored else _start_uploader(home, plan.key, arguments.tracking_uri)
    began = time.monotonic()
    code = UNEXPECTED
    try:
        if todo:
            try:
                progress = SweepProgress(home, _distinct(plan), console, plan.spec.evaluate, plan.spec.report)
                with handled(TERMINATING, raise_terminated), progress:
                    from dsd_lab.runs.ray_engine import (
                        run_trials,  # imports Ray, so only if something runs
                    )

                    cluster = {"address": arguments.address} if arguments.address else None
                    run_trials(
                        home,
                        todo,
                        plan.spec.evaluate,
                        arguments.max_concurrent,
                        arguments.fail_fast,
                        cluster,
                        stopping,
                        record,
                    )
                code = OK
            except Terminated:
                code = TERMINATED
            _say(console, f"trained and evaluated in {duration(time.monotonic() - began)}")
        else:
            code = OK
    finally:
        if uploader is not None:
            _finish_uploader(uploader, console, None if code == OK else _STORE_SECONDS)
    return code


def _unfinished(home: Home, plan: Plan, retry_failed: bool, stopping: bool) -> list[PlannedTrial]:
    """Trials that are not ended, and ended trials with missing evaluations.

    Failed trials need `--retry-failed` unless their input was at fault. Trials stopped by a forecast need a sweep without `--stop-collapsed`.
    """
    todo = []
    for trial in _distinct(plan):
        folder = home.trial(trial.id)
        status = folder.status()
        state = folder.state(status=status)
        if stopping and state == STOPPED:
            continue
        wanted = {evaluation_id(e) for e in of_trial(plan.spec.evaluate, trial.fields, folder.saved_steps())}
        missing = state == "done" and bool(wanted) and not wanted <= set(folder.evaluations())
        again = state == "failed" and (retry_failed or status.cause == "input")
        if state not in (*ENDED, "failed") or missing or again:
            todo.append(trial)
    return todo


def _distinct(plan: Plan) -> list[PlannedTrial]:
    return list({t.id: t for t in reversed(plan.trials)}.values())[::-1]


def _check_packages(tracking: bool) -> None:
    """Check once for packages that only workers and the uploader import."""
    for name in ("ray", "torch", "timm", *(["mlflow"] if tracking else [])):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _check_data(plan: Plan) -> None:
    for missing in missing_data(plan):
        raise BadInput(f"{plan.path}: {missing}")
    for missing in missing_weights(plan):
        raise BadInput(f"{plan.path}: {missing}")


def _start_uploader(home: Home, key: str, uri: str | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "dsd_lab.store.uploader", str(home.root), key]
    # In the environment: an address may hold a password, and command lines are visible to all users.
    environment = os.environ | safe_imports(os.environ) | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    # Own session: Ctrl-C reaches only this process, which then lets the uploader finish.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _finish_uploader(uploader: subprocess.Popen[bytes], console: LabConsole, patience: float | None) -> None:
    """Let the uploader catch up; after a signal only for `patience` seconds, since the machine may be taken away."""
    assert uploader.stdin is not None
    uploader.stdin.close()
    began = time.monotonic()
    if patience is not None:
        _say(console, f"storing records, for {patience:.0f} s at most")
    try:
        code = uploader.wait(patience)
    except subprocess.TimeoutExpired:
        uploader.kill()
        uploader.wait()
        code = -1
    if code < 0:  # killed; otherwise it has printed its error
        _say(console, "the store is incomplete; nothing is lost: `dsd-lab report` or the next sweep stores the rest")
    if code == 0 and time.monotonic() - began > 1:
        _say(console, f"stored in {duration(time.monotonic() - began)}")


def _summarise(home: Home, plan: Plan, arguments: argparse.Namespace, console: LabConsole) -> dict[str, str]:
    """Print how the trials ended. Returns their states by id."""
    statuses = {t.id: home.trial(t.id).status() for t in plan.trials}
    states = {i: home.trial(i).state(training_code(), status) for i, status in statuses.items()}
    counts = Counter(states[t.id] for t in _distinct(plan))
    if arguments.json:
        print_json(
            {
                "sweep": plan.key,
                "states": dict(counts),
                "trials": [{"id": t.id, "name": t.name, "state": states[t.id]} for t in plan.trials],
            }
        )
        return states
    _say(console, f"{plan.key}: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    if foreign := [t for t in _distinct(plan) if states[t.id] in (*ENDED, "stale") and home.trial(t.id).imported()]:
        _say(
            console,
            f"  {len(foreign)} of them imported and not trained here, such as {foreign[0].name} ({foreign[0].id})",
        )
    for trial in _distinct(plan):
        reason = statuses[trial.id].error
        if states[trial.id] in ("failed", "diverged", STOPPED) or (states[trial.id] == "interrupted" and reason):
            _say(console, f"  {trial.name} {states[trial.id]}: {reason}")
        if damaged := statuses[trial.id].damaged:
            _say(console, f"  {trial.name} skipped damaged checkpoints: {', '.join(damaged)}")
    # A trial that met a full disk may not have been able to record it.
    if "interrupted" in states.values() and shutil.disk_usage(home.root).free < _MIN_FREE:
        _say(console, f"  {home.root}: the disk is full; free space, then run the same command again")
    for note in state_notes(states.values(), training_code()):
        _say(console, note)
    command, at = program(arguments)
    at += store_option(arguments)
    _say(console, f"next: {command} report {plan.key}{at}")
    _say(console, f"MLflow: {command} ui{at} (shows verdicts after the report)")
    return states


def _say(console: LabConsole, text: str) -> None:
    console.print(printable(text), soft_wrap=True)
