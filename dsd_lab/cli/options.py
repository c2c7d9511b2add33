"""What verbs make of their arguments: home folder, plan, paths, and commands to suggest."""

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
