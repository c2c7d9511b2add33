"""`dsd-lab bench`: how fast trials train on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_lab.bench.subjects import Subject, chosen_subjects
from dsd_lab.bench.summary import START_TARGETS, SWEEP_TARGETS, event_medians, shares, verdicts
from dsd_lab.bench.whole_sweep import whole_sweep
from dsd_lab.cli.bench_tables import print_answer, print_sweeps
from dsd_lab.cli.console import LabConsole
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.home.cached_garbage import killed_benches
from dsd_lab.home.home import Home
from dsd_lab.planning.measured import cpu_name, remember_figure, whole_seconds
from dsd_lab.provenance import device_name, provenance
from dsd_lab.specs.network import SIZES
from dsd_lab.training_code import training_code

_BUSY = 0.5
"""Load a logical CPU from which other work makes times too long."""


def run(arguments: argparse.Namespace) -> int:
    """Measure trials, show the figures and keep them for `dsd-lab plan`; or measure whole sweeps."""
    subjects, home = chosen_subjects(arguments), home_of(arguments)
    if arguments.sweep:
        _refuse_what_is_of_trials(subjects, arguments)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * cores:
        say(
            f"dsd-lab: warning: this machine is busy (load {load:.1f} on {cores} CPUs): times will be too long, ratios less sure",
            error=True,
        )
    home.prepare()

    measure = _sweeps if arguments.sweep else _trials
    answer = {"machine": {"processor": cpu_name(), "load": round(load, 2)}, "provenance": provenance()}
    with _scratch(home) as scratch:
        answer |= measure(subjects, home, scratch, arguments)
    if arguments.json:
        print_json(answer)
    elif arguments.sweep:
        print_sweeps(answer)
    else:
        print_answer(answer)
    return OK


def _trials(subjects: list[Subject], home: Home, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from dsd_lab.bench.startup import start_up

    spec = next((subject.spec for subject in subjects if _is_file(subject)), None)
    start = start_up(min(arguments.repeats, 3), spec, _options(arguments), home)
    trials = _measured(subjects, home, scratch, arguments)
    targets = verdicts(trials) + verdicts([{"name": "", "spec": spec, **start}], START_TARGETS)
    return {"repeats": arguments.repeats, "start_up": start, "trials": trials, "targets": targets}


def _sweeps(subjects: list[Subject], home: Home, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    sweeps = [_swept(spec, arguments, scratch) for spec in dict.fromkeys(arguments.specs)]
    return {"sweeps": sweeps, "targets": verdicts(sweeps, SWEEP_TARGETS)}


def _refuse_what_is_of_trials(subjects: list[Subject], arguments: argparse.Namespace) -> None:
    for subject in subjects:
        if not _is_file(subject):
            raise BadInput(f"{subject.spec}: --sweep measures sweeps of spec files")
    for option in ("steps", "random_images", "store"):
        if getattr(arguments, option):
            raise BadInput(f"--{option.replace('_', '-')}: is for single trials, not for --sweep")


def _is_file(subject: Subject) -> bool:
    return subject.spec not in SIZES and subject.spec != "-"


def _options(arguments: argparse.Namespace) -> list[str]:
    """What is laid over a spec, for another process."""
    profile = [f"--profile={arguments.profile}"] if arguments.profile else []
    plugins = [f"--plugin={given}" for given in arguments.plugin]
    return [*profile, *plugins, *(f"--set={text}" for text in arguments.set)]


def _swept(spec: str, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    options = _options(arguments)
    options += [f"--only=variant={name}" for name in arguments.variant or []]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder:
        return {"name": Path(spec).stem} | whole_sweep(spec, options, Home(Path(folder)))


@contextlib.contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """A folder for what is written and timed, on the disk where trials lie; held, and emptied of what a killed run left."""
    folder = home.cache / "bench"
    with locked(folder / "lock", wait=False) as held:
        if not held:
            raise BadInput(
                f"--home {home.root}: another `dsd-lab bench` runs there; each would be in the other's times"
            )
        for left in killed_benches(home):
            shutil.rmtree(left, ignore_errors=True)
        yield folder


def _measured(
    subjects: list[Subject], home: Home, scratch: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dsd_lab.bench.measure import Settings, measure
    from dsd_lab.bench.random_images import random_images
    from dsd_lab.core.training.trainer import pick_device
    from dsd_lab.runs.data_shelf import DataShelf

    settings, shelf, found = Settings(arguments.repeats, arguments.steps), DataShelf(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = LabConsole()
    with Progress(*columns, console=console, disable=arguments.json or not console.is_terminal) as bar:
        for number, subject in enumerate(subjects, 1):
            trial, fields = subject.trial, subject.trial.fields
            device = pick_device(fields.resources.gpus)
            data = random_images(fields) if subject.random_images else shelf.get(trial, home)
            task = bar.add_task(subject.name, total=settings.repeats)

            def told(done: int, task: Any = task) -> None:
                bar.update(task, completed=done)

            figures = measure(fields, trial.seed, data, device, scratch, settings, told)
            name = cpu_name() if device.type == "cpu" else device_name(device)
            step, events = figures["step_seconds"]["median"], event_medians(figures)
            figure = {"step": step, "events": events, "code": training_code(), "measured_at": time.time()}
            remember_figure(home, fields, name, figure)
            whole = whole_seconds(fields, step, events)
            identity = {
                "spec": subject.spec,
                "name": subject.name,
                "variant": trial.variant,
                "point": trial.point,
                "size": fields.network.size,
                "images": "random" if subject.random_images else fields.data.source,
                "device": name,
            }
            if arguments.store:
                from dsd_lab.bench.storing import store_seconds  # imports MLflow

                with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder:
                    figures["store"] = store_seconds(subject, data, Path(folder))
                figures["store"]["share"] = figures["store"]["trial_seconds"] / whole
            found.append(identity | figures | {"shares": shares(fields, figures), "trial_seconds": whole})
            if not arguments.json and not console.is_terminal:
                say(f"{subject.spec} {subject.name}: measured ({number} of {len(subjects)})")
    return found
