"""`dsd-lab bench`: measure training speed on this machine and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsd_lab.bench.subjects import Subject, chosen_subjects
from dsd_lab.cli.bench_tables import print_answer
from dsd_lab.cli.console import LabConsole
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.home.cached_garbage import killed_benches
from dsd_lab.home.home import Home
from dsd_lab.planning.measured import cpu_name
from dsd_lab.provenance import provenance

_BUSY_LOAD = 0.5
"""Load per logical CPU above which other processes distort the times."""


def run(arguments: argparse.Namespace) -> int:
    """Measure trials, print the figures and store them for `dsd-lab plan`."""
    subjects, home = chosen_subjects(arguments), home_of(arguments)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY_LOAD * cores:
        say(
            f"dsd-lab: warning: this machine is busy (load {load:.1f} on {cores} CPUs), so times will be too long",
            error=True,
        )
    home.prepare()
    answer: dict[str, Any] = {"machine": {"processor": cpu_name(), "load": round(load, 2)}, "provenance": provenance()}
    with _scratch(home) as scratch:
        trials = _trials(subjects, home, scratch, arguments)
    answer |= {"repeats": arguments.repeats, "trials": trials}
    if arguments.json:
        print_json(answer)
    else:
        print_answer(answer)
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
