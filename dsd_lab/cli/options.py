"""Arguments that several verbs share, and their types."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import spec_file
from dsd_lab.specs.sweep import Plan, PlannedTrial

TRIAL = "trial: id (or its first characters) or name, such as naive or 'naive s0'"


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, example: str
) -> argparse.ArgumentParser:
    """Add a verb with its help, an example, and `--home`."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=f"example: {example}"
    )
    verb.add_argument(
        "--home", metavar="DIR", help="folder of trials, store and reports (default: $DSD_LAB_HOME, else runs/)"
    )
    return verb


def takes_precision(verb: argparse.ArgumentParser) -> None:
    """In what samples are drawn."""
    verb.add_argument("--precision", choices=("fp32", "bf16"), help="of the network while it samples (default: fp32)")


def takes_processes(verb: argparse.ArgumentParser) -> None:
    """How many processes share a work."""
    verb.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes that share the images, one a GPU where the trial has some (default: as the trial was trained)",
    )


def with_processes(trial: PlannedTrial, processes: int | None) -> PlannedTrial:
    """The trial with as many processes, and GPUs where it has some; its id is the same.

    Raises:
        BadInput: a batch of it has fewer images.
    """
    if processes is None:
        return trial
    resources, training = trial.fields.resources, trial.fields.training
    if processes > training.batch_size // training.grad_accum_steps:
        raise BadInput(f"--processes {processes}: a batch of the trial has fewer images than that")
    changed = {"processes": processes} | ({"gpus": float(processes)} if resources.gpus else {})
    fields = trial.fields.model_copy(update={"resources": resources.model_copy(update=changed)})
    return replace(trial, fields=fields)


def takes_trial(verb: argparse.ArgumentParser) -> None:
    """Add the trial argument."""
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


def takes_tracking(verb: argparse.ArgumentParser) -> None:
    """Add `--tracking-uri`."""
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


def home_of(arguments: argparse.Namespace) -> Home:
    """`--home`, else `DSD_LAB_HOME`, else `runs/` in the current folder; absolute, for messages."""
    return Home(place_of(arguments.home or os.environ.get("DSD_LAB_HOME") or "runs", "--home"))


def place_of(text: str, option: str) -> Path:
    """Absolute path of a typed file or folder, with links unresolved.

    Args:
        text: as typed.
        option: name for messages.

    Raises:
        BadInput: it begins with `~` and an unknown user.
    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{option} {text}: no such user") from None


def program(arguments: argparse.Namespace) -> tuple[str, str]:
    """The command that calls this program from a fresh shell in the same folder, and its `--home` option."""
    called = sys.argv[0] if Path(sys.argv[0]).name == "dsd-lab" else None
    found = shutil.which("dsd-lab")
    if found is not None and called is not None and os.path.realpath(found) == os.path.realpath(called):
        command = "dsd-lab"  # only if the search path leads to this installation
    else:
        command = shlex.quote(called) if called is not None else f"{shlex.quote(sys.executable)} -m dsd_lab"
    home = arguments.home or os.environ.get("DSD_LAB_HOME")
    return command, "" if not home else f" --home {shlex.quote(home)}"


def store_option(arguments: argparse.Namespace) -> str:
    """The `--tracking-uri` option for a suggested command, without a password."""
    given = arguments.tracking_uri
    return "" if given is None else f" --tracking-uri {shlex.quote(without_password(given, given))}"


def command_line() -> str:
    """The command line of this process, quoted for a shell, without passwords."""
    return without_password(shlex.join(["dsd-lab", *sys.argv[1:]]))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan of the spec in the arguments."""
    plan = load_sweep(spec_file(arguments.spec), arguments.profile, arguments.set)
    only = getattr(arguments, "only", None)
    return plan.only(only) if only else plan


def print_json(content: Any) -> None:
    """Print JSON to standard output. NaN raises ValueError."""
    json.dump(content, sys.stdout, indent=1, allow_nan=False)
    print()
