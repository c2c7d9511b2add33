"""Arguments that several verbs share, and their types; imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What verbs are added to."""
SPEC = "collapse_ablation"
"""Shipped spec of the examples."""
LABELS, PROTOCOLS = ("balanced", "random", "training"), ("adm", "jit", "repa")
SWEEP = "sweep name as in `dsd-lab status`"
TRIAL = "trial: id (or its first characters) or name, such as naive or 'naive s0'"


def add_verb(verbs: Verbs, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """Add a verb with its help, an example, and `--home`; `parser.py` adds `--json`."""
    verb = verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", epilog=f"example: {example}")
    verb.add_argument(
        "--home", metavar="DIR", help="folder of trials, store and reports (default: $DSD_LAB_HOME, else runs/)"
    )
    return verb


def takes_sampling(verb: argparse.ArgumentParser) -> None:
    """Add the options of how samples are drawn that have one value."""
    verb.add_argument("--sampler", help="solver (default: heun; `dsd-lab parts sampler` lists them)")
    verb.add_argument("--steps", type=positive, help="solver steps (default: 25)")
    verb.add_argument(
        "--precision", choices=("fp32", "bf16"), help="precision of the network during sampling (default: fp32)"
    )
    takes_processes(verb)


def takes_processes(verb: argparse.ArgumentParser) -> None:
    """Add `--processes`."""
    verb.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes that share the images, one per GPU if the trial uses GPUs (default: as the trial was trained)",
    )


def takes_trial(verb: argparse.ArgumentParser) -> None:
    """Add the trial."""
    verb.add_argument("trial", help=TRIAL)


def takes_spec(verb: argparse.ArgumentParser) -> None:
    """Add the spec argument and its options."""
    verb.add_argument(
        "spec", metavar="SPEC", help="YAML file, name of a shipped spec (`dsd-lab specs`), or - for standard input"
    )
    takes_spec_options(verb)


def takes_plugins(verb: argparse.ArgumentParser) -> None:
    """Add `--plugin`."""
    verb.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="Python file or module that defines your own parts; repeatable (also: $DSD_LAB_PLUGINS)",
    )


def takes_spec_options(verb: argparse.ArgumentParser) -> None:
    """Add `--profile`, `--set` and `--plugin`."""
    takes_plugins(verb)
    verb.add_argument("--profile", help="profile of the spec (default: its `profile`)")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override, such as training.steps=200 or seeds=[0]; repeatable",
    )


def takes_only(verb: argparse.ArgumentParser) -> None:
    """Add `--only`."""
    verb.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only trials with variant=NAME or seed=N, or several: variant=A,B; repeatable",
    )


def takes_tracking(verb: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add `--tracking-uri`, and `--no-tracking` for a verb that works without a store."""
    if optional:
        verb.add_argument(
            "--no-tracking", action="store_true", help="do not store in MLflow; `dsd-lab report` does it later"
        )
    verb.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else SQLite in the home folder)",
    )


def takes_yes(verb: argparse.ArgumentParser) -> None:
    """Add `--yes`, without which nothing is deleted."""
    verb.add_argument("--yes", action="store_true", help="delete; without it, only show what would be deleted")


def allows_code_change(verb: argparse.ArgumentParser) -> None:
    """Add `--allow-code-change`."""
    verb.add_argument(
        "--allow-code-change",
        action="store_true",
        help="resume trials that other training code began; records and reports show which code trained which steps",
    )


def answers_json(verb: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    verb.add_argument("--json", action="store_true", help="answer in JSON")


def count(text: str) -> int | str:
    """Parse a number of images, or `holdout`."""
    return text if text == "holdout" else positive(text)


def checkpoint(text: str) -> int | str:
    """A step of a checkpoint, `last`, or `all`."""
    return text if text in ("all", "last") else positive(text)


def chance(text: str) -> float:
    """Parse a probability of collapse."""
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a probability of at least 0.5 and below 1")
    return value


def quality(text: str) -> int:
    """Quality of a JPEG file."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not a quality from 1 to 100")
    return value


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value
