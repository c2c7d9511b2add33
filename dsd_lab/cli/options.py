"""Arguments that several verbs of the command line share, and the kinds of values that they take."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import spec_file
from dsd_lab.specs.sweep import Plan

TRIAL = "trial: its id (the first characters do) or name, such as naive or 'naive s0'"


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, example: str
) -> argparse.ArgumentParser:
    """A verb with its help, an example, and `--home`."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=f"example: {example}"
    )
    verb.add_argument(
        "--home", metavar="DIR", help="folder of trials, store and reports (default: $DSD_LAB_HOME, else runs/)"
    )
    return verb


def takes_trial(verb: argparse.ArgumentParser) -> None:
    """A trial by its id."""
    verb.add_argument("trial", help=TRIAL)


def takes_spec(verb: argparse.ArgumentParser) -> None:
    """A spec file, and what is laid over it."""
    verb.add_argument(
        "spec", metavar="SPEC", help="YAML file, name of a shipped spec (`dsd-lab specs`), or - for standard input"
    )
    takes_spec_options(verb)


def takes_plugins(verb: argparse.ArgumentParser) -> None:
    """Plug-ins that define parts."""
    verb.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="Python file or module that defines parts of your own; repeatable (also: $DSD_LAB_PLUGINS)",
    )


def takes_spec_options(verb: argparse.ArgumentParser) -> None:
    """What is laid over a spec."""
    takes_plugins(verb)
    verb.add_argument("--profile", help="profile of the spec (default: the one that it names)")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override, such as training.steps=200 or seeds=[0]; repeatable",
    )


def takes_only(verb: argparse.ArgumentParser) -> None:
    """Some trials of a spec."""
    verb.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only trials with variant=NAME or seed=N, or several: variant=A,B; repeatable",
    )


def takes_tracking(verb: argparse.ArgumentParser) -> None:
    """The store."""
    verb.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: $MLFLOW_TRACKING_URI, else SQLite in the home folder)",
    )


def takes_yes(verb: argparse.ArgumentParser) -> None:
    """Nothing is deleted without it."""
    verb.add_argument("--yes", action="store_true", help="do it; without, only show what would be freed")


def allows_code_change(verb: argparse.ArgumentParser) -> None:
    """A trial is finished by other training code than began it, where that was asked for."""
    verb.add_argument(
        "--allow-code-change",
        action="store_true",
        help="go on with trials that other training code began; their records and reports say which trained from which step",
    )


def answers_json(verb: argparse.ArgumentParser) -> None:
    """The answer as JSON."""
    verb.add_argument("--json", action="store_true", help="answer in JSON")


def count(text: str) -> int | str:
    """A number of images, or `holdout`."""
    return text if text == "holdout" else positive(text)


def chance(text: str) -> float:
    """A chance that a forecast can be sure of."""
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a chance from 0.5 to below 1")
    return value


def positive(text: str) -> int:
    """A number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def home_of(arguments: argparse.Namespace) -> Home:
    """`--home`, else `DSD_LAB_HOME`, else `runs/` below the current folder; absolute, as messages show it."""
    return Home(place_of(arguments.home or os.environ.get("DSD_LAB_HOME") or "runs", "--home"))


def place_of(text: str, option: str) -> Path:
    """The file or folder that was typed, from the root on; links keep their names.

    Args:
        text: as it was typed, from the current folder on.
        option: that it was typed for, for the message.

    Raises:
        BadInput: it begins with `~` and the name of nobody.
    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{option} {text}: no such user") from None


def program(arguments: argparse.Namespace) -> tuple[str, str]:
    """How to call this program again, from a fresh shell in the same folder, and the `--home` that goes with it."""
    called = sys.argv[0] if Path(sys.argv[0]).name == "dsd-lab" else None
    found = shutil.which("dsd-lab")
    if found is not None and called is not None and os.path.realpath(found) == os.path.realpath(called):
        command = "dsd-lab"  # of the search path; another one that is found there is another installation
    else:
        command = shlex.quote(called) if called is not None else f"{shlex.quote(sys.executable)} -m dsd_lab"
    home = arguments.home or os.environ.get("DSD_LAB_HOME")
    return command, "" if not home else f" --home {shlex.quote(home)}"


def store_option(arguments: argparse.Namespace) -> str:
    """The `--tracking-uri` that a next command needs to find what this one stored; a password in it is left out."""
    given = arguments.tracking_uri
    return "" if given is None else f" --tracking-uri {shlex.quote(without_password(given, given))}"


def command_line() -> str:
    """The command line of this process as a shell takes it; passwords in addresses are left out."""
    return without_password(shlex.join(["dsd-lab", *sys.argv[1:]]))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan of the spec that the arguments name."""
    plan = load_sweep(spec_file(arguments.spec), arguments.profile, arguments.set)
    only = getattr(arguments, "only", None)
    return plan.only(only) if only else plan


def print_json(content: Any) -> None:
    """JSON on standard output; NaN is refused, since JSON has none."""
    json.dump(content, sys.stdout, indent=1, allow_nan=False)
    print()
