"""`dsd-lab logs`: show a trial's records. Reads only its files, so it also works while the trial runs."""

from __future__ import annotations

import argparse
import time
from collections import deque
from typing import Any

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import INTERRUPTED, OK, BadInput
from dsd_lab.files.printable import printable, say
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.spool import SpoolTail, read_spool
from dsd_lab.home.trial_folder import TrialFolder, state_notes
from dsd_lab.home.trial_records import SpoolLine
from dsd_lab.runs.continuity import format_codes, format_devices
from dsd_lab.specs.metrics import LATENT
from dsd_lab.training_code import training_code
from dsd_lab.units import duration

_SHOWN_METRICS = ("latent/variance", *(metric.recorded for metric in LATENT if metric.table))
"""The probe's metrics that reports have columns of; `--json` has all metrics."""
_POLL_SECONDS = 0.5
"""Seconds between checks of a followed spool."""


def run(arguments: argparse.Namespace) -> int:
    """Print a trial's records."""
    home = home_of(arguments)
    if arguments.follow and arguments.json:
        raise BadInput("--follow: cannot be combined with --json")
    folder = find_trial(home, arguments.trial)
    answer = record_of(home, folder, arguments.lines)
    if arguments.json:
        print_json(answer | {"events": [line.model_dump(exclude_unset=True) for line in answer["events"]]})
        return OK
    state = answer["state"] + (" (imported)" if answer["imported"] else "")
    say(f"{answer['name'] or 'never started'}: {state}, trial {answer['id']} in {folder.root}")
    attempts = f"{answer['attempts']} attempt{'s' if answer['attempts'] != 1 else ''}"
    say(f"step {answer['step']:,} of {answer['steps']:,}, {attempts}, {duration(answer['seconds'])} of training")
    say(f"sweeps: {', '.join(answer['sweeps']) or 'in no recorded sweep'}")
    if answer["code_changes"]:
        say(f"training code: {answer['code_changes']}")
    if answer["damaged"]:
        say(f"data: {answer['damaged']} damaged images were left out; trial.json names them")
    if answer["error"]:
        say(f"error: {printable(str(answer['error']))}")
    if answer["traceback"]:
        say(f"traceback: {answer['traceback']}")
    if answer["metrics"]:
        say("last metrics:")
        shown = {k: v for k, v in answer["metrics"].items() if not k.startswith("latent/") or k in _SHOWN_METRICS}
        for name, (step, value) in ((k, (v["step"], v["value"])) for k, v in shown.items()):
            say(f"  {name:<60} {value:>12.6g}  at step {step:,}")
    for note in state_notes([answer["state"]], training_code()):
        say(note)
    for entry in answer["events"]:
        say(event_line(entry))
    return _follow(folder, answer["events"]) if arguments.follow else OK


def _follow(folder: TrialFolder, shown: list[SpoolLine]) -> int:
    """Print events as they are recorded until no process holds the trial."""
    tail = SpoolTail(folder.spool)
    last = shown[-1].n if shown else -1
    entries = [entry for entry in tail.read() if entry.n > last]
    try:
        while True:
            for entry in entries:
                say(event_line(entry))
            state = folder.state()  # read before the last check, so that no event is missed
            ended = state not in ("pending", "running") and not folder.is_locked()
            entries = tail.read()
            if ended and not entries:
                say(f"{state} at step {folder.status().step:,}")
                return OK
            if not entries:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return INTERRUPTED


def record_of(home: Home, folder: TrialFolder, lines: int) -> dict[str, Any]:
    """The JSON answer: state, attempts, error, last value of every metric, last events.

    Raises:
        BadInput: the spool is damaged.
    """
    status, state = folder.status(), folder.state(training_code())
    metrics: dict[str, dict[str, Any]] = {}
    events: deque[SpoolLine] = deque(maxlen=lines)
    for line in read_spool(folder.spool):
        events.append(line)
        metrics |= {k: {"step": line.step, "value": v} for k, v in line.metrics.items()}
    for evaluation in folder.evaluations().values():
        metrics |= {k: {"step": status.step, "value": v} for k, v in evaluation.metrics.items()}
    sweeps = {key: manifest for key, manifest in home.manifests().items() if folder.id in manifest.named}
    known = next((entry.name for m in sweeps.values() for entry in m.trials if entry.id == folder.id), None)
    traceback, described = folder.root / "error.txt", folder.description()
    return {
        "id": folder.id,
        "name": known if described is None else described.name,
        "sweeps": list(sweeps),
        "folder": str(folder.root.resolve()),
        "state": state,
        "imported": folder.imported() is not None,
        "step": status.step,
        "steps": status.steps,
        "attempts": status.attempt,
        "seconds": status.seconds,
        "error": status.error,
        "code_changes": format_codes(status),
        "device_changes": format_devices(status),
        "damaged": 0 if described is None else described.data.damaged,
        # error.txt outlives its attempt, so it counts only if the trial failed last.
        "traceback": str(traceback.resolve()) if state == "failed" and traceback.exists() else None,
        "metrics": metrics,
        "events": list(events),
    }


def event_line(line: SpoolLine) -> str:
    """An event as one line: time, step, content."""
    metrics = line.metrics
    if line.kind == "probe":
        metrics = {k: metrics[k] for k in _SHOWN_METRICS if k in metrics}
    parts = [f"{name} {value:.4g}" for name, value in metrics.items()]
    parts += line.files
    if line.reason is not None:
        parts.append(printable(line.reason))
    if line.images_seen is not None:
        parts.append(f"{line.images_seen:,} images seen")
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time))
    return f"{clock}  step {line.step:>7,}  {line.kind:<10}  {', '.join(parts)}".rstrip()
