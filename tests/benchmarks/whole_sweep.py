"""A whole sweep run from outside: from Enter to the first step, and what its trials wait for beside their own work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import psutil

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.spool import read_spool

_LOOK = 1.0
"""Seconds between two looks at the workers."""
_SHORT = 1.0
"""Seconds of a trial's own work below which what passes around it says nothing of a sweep that somebody would run."""


@dataclass(frozen=True)
class _Ended:
    """A trial that ended: moments in seconds since the epoch, and the seconds of its own work."""

    worker: int
    started: float
    ended: float
    busy: float


def whole_sweep(spec: str, options: list[str], home: Home) -> dict[str, Any]:
    """Run `dsd-lab sweep` in an empty home folder and time it.

    `first_step_seconds` is from its start to the end of the first step. `occupancy` is the time from the
    first trial's start to the last one's end, over the trials' own (training and evaluations) divided by the
    number of slots, a slot being a worker that worked beside others; None where trials are shorter than a second. `overhead_seconds` is what passes between the
    starts of two trials on a worker beyond the first one's own work; `each_seconds` all of it. `memory` and
    `handles` are of the largest worker, after a fifth of the trials and at the end, `..._growth` the one over the
    other; None where no worker was seen.

    Args:
        spec: its file.
        options: of `sweep`, such as `--profile quick`.
        home: an empty home folder.

    Raises:
        BadInput: the sweep did not end with all trials done or diverged; its last words are told.
    """
    command = [sys.executable, "-P", "-m", "dsd_lab", "sweep", spec, "--home", str(home.root), *options]
    told, looks = home.root / "told.txt", []
    began = time.time()
    with told.open("w") as file, _running(command, file) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK)
            looks.append(_look(home))
    if process.returncode != 0:
        last = (told.read_text().strip() or "no output").splitlines()[-1]
        raise BadInput(f"{spec}: its sweep ended with exit code {process.returncode}: {last}")
    wall = time.time() - began
    return {"spec": spec, "wall_seconds": wall, "first_step_seconds": _first_step(home) - began} | figures(home, looks)


@contextlib.contextmanager
def _running(command: list[str], file: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process; told to stop, and waited for, where the block does not end well."""
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def figures(home: Home, looks: Sequence[tuple[int, Mapping[int, tuple[int, int]]]]) -> dict[str, Any]:
    """What the trials' own records and the looks at their workers say; see `whole_sweep`."""
    trials = _ended(home)
    workers: dict[int, list[_Ended]] = {}
    for trial in sorted(trials, key=lambda t: t.started):
        workers.setdefault(trial.worker, []).append(trial)
    slots = _most_at_once(trials)
    busy = sum(t.busy for t in trials)
    span = max(t.ended for t in trials) - min(t.started for t in trials)
    pairs = [(a, b) for its in workers.values() for a, b in pairwise(its)]
    nothing: Mapping[int, tuple[int, int]] = {}
    early = next((held for begun, held in looks if begun >= len(trials) / 5 and held), nothing)
    late = next((held for _, held in reversed(looks) if held), nothing)
    held = {"memory": _largest(early, late, 0), "handles": _largest(early, late, 1)}
    growth = {f"{what}_growth": pair and pair[1] / pair[0] for what, pair in held.items()}
    return {
        "trials": len(trials),
        "slots": slots,
        "busy_seconds": busy,
        "occupancy": span * slots / busy if busy > _SHORT * len(trials) else None,
        "overhead_seconds": median(b.started - a.started - a.busy for a, b in pairs) if pairs else None,
        "each_seconds": median(b.started - a.started for a, b in pairs) if pairs else None,
        **held,
        **growth,
    }


def _ended(home: Home) -> list[_Ended]:
    found = []
    for path in home.root.glob("trials/*/status.json"):
        folder = home.trial(path.parent.name)
        status, seconds = folder.status(), sum(e.seconds for e in folder.evaluations().values())
        ended = max([status.updated, *(e.stat().st_mtime for e in path.parent.glob("evaluations/*.json"))])
        found.append(_Ended(status.pid or 0, status.started, ended, status.seconds + seconds))
    return found


def _most_at_once(trials: list[_Ended]) -> int:
    moments = sorted([(t.started, 1) for t in trials] + [(t.ended, -1) for t in trials])
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def _first_step(home: Home) -> float:
    """When the first step had ended, in seconds since the epoch: a record's time less that of its steps but one."""
    moments = [
        line.time - line.seconds * (1 - 1 / line.step)
        for spool in home.root.glob("trials/*/spool.jsonl")
        for line in read_spool(spool)
        if line.kind == "train" and line.seconds is not None
    ]
    return float(min(moments))


def _look(home: Home) -> tuple[int, dict[int, tuple[int, int]]]:
    """Trials that were begun, and (resident bytes, open handles) of every worker that lives."""
    statuses = [home.trial(path.parent.name).status() for path in home.root.glob("trials/*/status.json")]
    held = {}
    for worker in {status.pid for status in statuses if status.pid is not None}:
        with contextlib.suppress(psutil.Error):  # it has ended
            process = psutil.Process(worker)
            held[worker] = (process.memory_info().rss, process.num_fds())
    return len(statuses), held


def _largest(early: Mapping[int, tuple[int, int]], late: Mapping[int, tuple[int, int]], what: int) -> list[int] | None:
    if not early or not late:
        return None
    return [max(held[what] for held in early.values()), max(held[what] for held in late.values())]
