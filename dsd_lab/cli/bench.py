"""`dsd-lab bench`: measure training speed on this machine and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dsd_lab.bench.subjects import Subject, chosen_subjects
from dsd_lab.cli.bench_tables import print_answer, print_reading
from dsd_lab.cli.console import LabConsole
from dsd_lab.cli.data import trials_of
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.home.cached_garbage import killed_benches
from dsd_lab.home.home import Home
from dsd_lab.planning.measured import cpu_name
from dsd_lab.provenance import provenance
from dsd_lab.specs.identity import data_name
from dsd_lab.specs.trial import Trial

_BUSY_LOAD = 0.5
"""Load per logical CPU above which other processes distort the times."""


def run(arguments: argparse.Namespace) -> int:
    """Measure trials, print the figures and store them for `dsd-lab plan`; with `--data`, measure only how fast images are read."""
    home = home_of(arguments)
    images = _images(arguments) if arguments.data else []
    subjects = [] if arguments.data else chosen_subjects(arguments)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY_LOAD * cores:
        say(
            f"dsd-lab: warning: this machine is busy (load {load:.1f} on {cores} CPUs), so times will be too long",
            error=True,
        )
    home.prepare()
    answer: dict[str, Any] = {"machine": {"processor": cpu_name(), "load": round(load, 2)}, "provenance": provenance()}
    with _scratch(home) as scratch:
        if arguments.data:
            return _reading(images, scratch, answer, arguments)
        trials = _trials(subjects, home, scratch, arguments)
    answer |= {"repeats": arguments.repeats, "trials": trials}
    if arguments.json:
        print_json(answer)
    else:
        print_answer(answer)
    return OK


def _images(arguments: argparse.Namespace) -> list[Trial]:
    """One trial for each data set whose reading is measured."""
    every = [trials_of(argparse.Namespace(**vars(arguments) | {"spec": text})) for text in arguments.specs]
    return [trial for trials in every for trial in trials]


def _reading(trials: list[Trial], scratch: Path, answer: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Measure how fast images are read."""
    from dsd_lab.bench.reading import reading_speeds

    answer |= {"repeats": arguments.repeats, "reading": []}
    for trial in trials:
        name, batch = data_name(trial), trial.training.batch_size
        on_form = None if arguments.json else partial(say, error=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=scratch) as folder:
            forms = reading_speeds(trial.data, Path(folder), arguments.repeats, batch, on_form)
        answer["reading"].append({"data": name, "batch_size": batch, "forms": forms})
    if arguments.json:
        print_json(answer)
    else:
        print_reading(answer)
    return OK


@contextlib.contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """Lock and yield a temporary folder on the disk of the trials; removes what killed runs left."""
    folder = home.cache / "bench"
    with locked(folder / "lock", wait=False) as held:
        if not held:
            raise BadInput(
                f"--home {home.root}: another `dsd-lab bench` is running there; simultaneous runs would distort each other's times"
            )
        for left in killed_benches(home):
            shutil.rmtree(left, ignore_errors=True)
        yield folder


def _trials(subjects: list[Subject], home: Home, scratch: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dsd_lab.bench.measure import Settings, measured

    settings, found = Settings(arguments.repeats, arguments.steps, arguments.processes), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = LabConsole()
    with Progress(*columns, console=console, disable=arguments.json or not console.is_terminal) as bar:
        tasks = {id(subject): bar.add_task(subject.name, total=settings.repeats) for subject in subjects}

        def on_repeat(subject: Subject, done: int) -> None:
            bar.update(tasks[id(subject)], completed=done)

        for subject, _, figures in measured(subjects, home, scratch, settings, on_repeat):
            found.append(figures)
            if not arguments.json and not console.is_terminal:
                say(f"{subject.spec} {subject.name}: measured ({len(found)} of {len(subjects)})")
    return found
