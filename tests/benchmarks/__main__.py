"""Measures trials, or whole sweeps, and compares them with the targets in `targets.py`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.comparison import compare
from benchmarks.evaluation import evaluation_ratios
from benchmarks.startup import start_up
from benchmarks.storing import store_seconds
from benchmarks.targets import START, SWEEPS, TRIALS, verdicts
from benchmarks.whole_sweep import whole_sweep
from dsd_lab.bench.measure import Settings, measured
from dsd_lab.bench.subjects import chosen_subjects
from dsd_lab.cli.arguments import positive, takes_spec_options
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import LabError
from dsd_lab.home.home import Home
from dsd_lab.specs.network import SIZES


def main(argv: list[str] | None = None) -> int:
    """Print each target with its figure; all figures go to `--out`."""
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="dsd-lab-bench-") as folder:
        try:
            answer = arguments.measure(arguments, Path(folder))
        except LabError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return error.exit_code
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(answer, indent=1) + "\n")
    for target in answer["targets"]:
        met = "met" if target["met"] else "MISSED"
        print(f"{met:6} {target['name']}: {target['measured']}, {target['bound']} ({target['what']}; {target['of']})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for name, measure, what in (
        ("trials", _trials, "a step over a bare loop's, shares of a trial, sampling, memory, start-up"),
        ("sweeps", _sweeps, "whole sweeps of the specs, each in an empty home folder"),
    ):
        verb = verbs.add_parser(name, help=what)
        verb.add_argument("specs", nargs="+", metavar="SPEC|SIZE" if measure is _trials else "SPEC")
        takes_spec_options(verb)
        verb.add_argument("--variant", action="append", metavar="NAME", help="only this variant; repeatable")
        verb.add_argument("--out", metavar="FILE", help="JSON file for all figures")
        verb.set_defaults(measure=measure, json=True)
    trials = verbs.choices["trials"]
    trials.add_argument("--repeats", type=positive, default=5, metavar="N")
    trials.add_argument("--steps", type=positive, metavar="N", help="of a repeat (default: half a second)")
    trials.add_argument("--random-images", action="store_true")
    trials.add_argument("--store", action="store_true", help="measure the store as well (imports MLflow)")
    return parser


def _options(arguments: argparse.Namespace) -> list[str]:
    """What is laid over a spec, for another process."""
    profile = [f"--profile={arguments.profile}"] if arguments.profile else []
    plugins = [f"--plugin={given}" for given in arguments.plugin]
    return [*profile, *plugins, *(f"--set={text}" for text in arguments.set)]


def _trials(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    subjects, home = chosen_subjects(arguments), Home(folder / "home")
    home.prepare()
    spec = next((subject.spec for subject in subjects if subject.spec not in SIZES), None)
    start = start_up(min(arguments.repeats, 3), spec, _options(arguments), home)
    settings, trials = Settings(arguments.repeats, arguments.steps), []
    for subject, data, figures in measured(subjects, home, folder, settings):
        fields, device = subject.trial.fields, pick_device(subject.trial.fields.resources.gpus)
        steps = figures["steps_timed"] // (arguments.repeats * len(fields.stages()))
        figures |= compare(fields, subject.trial.seed, data, device, arguments.repeats, steps)
        if fields.has_denoiser:
            trainer = Trainer(fields, subject.trial.seed, data, device)
            figures["evaluation"] = evaluation_ratios(trainer, arguments.repeats)
        if arguments.store:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                figures["store"] = store_seconds(subject, data, Path(place))
            figures["store"]["share"] = figures["store"]["trial_seconds"] / figures["trial_seconds"]
        trials.append(figures)
    targets = verdicts(trials, TRIALS) + verdicts([{"name": "a process", **start}], START)
    return {"repeats": arguments.repeats, "start_up": start, "trials": trials, "targets": targets}


def _sweeps(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = _options(arguments) + [f"--only=variant={name}" for name in arguments.variant or []]
    found = []
    for number, spec in enumerate(dict.fromkeys(arguments.specs)):
        home = Home(folder / str(number))
        home.prepare()
        found.append({"name": Path(spec).stem} | whole_sweep(spec, options, home))
    return {"sweeps": found, "targets": verdicts(found, SWEEPS)}


if __name__ == "__main__":
    sys.exit(main())
