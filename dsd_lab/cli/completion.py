"""`dsd-lab completion`: a shell completion script for verbs, options and values, made by shtab from the parser."""

from __future__ import annotations

import argparse
from typing import Any

import shtab

from dsd_lab.cli.options import print_json
from dsd_lab.cli.parser import build_parser
from dsd_lab.errors import OK
from dsd_lab.specs.trial import Trial

_NAMES = """awk '/^{section}:/ {{on = 1; next}} /^[^ #]/ {{on = 0}} \
  on && /^  [A-Za-z0-9_-]+:/ {{sub(/:.*/, ""); print $1}}' /dev/null {files} 2>/dev/null"""
"""Prints the keys below a section of spec files. /dev/null keeps awk from reading stdin if there are no files."""


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    parser = build_parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for verb in verbs.choices.values():
        for action in verb._actions:
            if (values := _values(action)) is not None:
                action.complete = values  # read by shtab
    script = shtab.complete(parser, arguments.shell)
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})
    else:
        print(script)
    return OK


def _values(action: argparse.Action) -> dict[str, Any] | None:
    """Completion of an argument without fixed choices."""
    metavar = str(action.metavar or action.dest)
    if action.dest in ("profile", "variant"):
        return _names_in_specs(f"{action.dest}s")
    if action.dest == "set":
        return shtab.cmd(f"echo {' '.join(_keys())}")
    if metavar.startswith("SPEC"):
        return shtab.glob("*.yaml", "*.yml")
    if metavar in ("DIR", "EXPORT", "HOME"):
        return shtab.DIRECTORY
    return shtab.FILE if metavar in ("FILE", "FILE|MODULE", "NPZ", "PATH") else None


def _names_in_specs(section: str) -> dict[str, Any]:
    """Profiles or variants of the spec files on the command line."""
    name = f"_dsd_lab_{section}"
    bash = _NAMES.format(section=section, files='$(printf "%s\\n" "${COMP_WORDS[@]}" | grep "[.]ya*ml$")')
    zsh = _NAMES.format(section=section, files="${(M)words:#*.y*ml}")
    fish = _NAMES.format(section=section, files="(commandline -opc | string match '*.y*ml')")
    functions = {
        "bash": f'{name}() {{\n  compgen -W "$({bash})" -- "$1"\n}}',
        "zsh": f"{name}() {{\n  compadd -- $({zsh})\n}}",
        "fish": f"function {name}\n  {fish}\nend",
    }
    return {"bash": name, "zsh": name, "fish": f"({name})", "preamble": functions}


def _keys() -> list[str]:
    """Fields of a trial in the form of `--set`, such as `training.steps=`."""
    return [f"{name}.{key}=" for name, section in Trial().model_dump().items() for key in section]
