"""The parser of the command line, whose verbs are in `verbs/`; imports nothing heavy."""

from __future__ import annotations

import argparse
import shlex

from dsd_lab.cli.arguments import SPEC, Verbs, answers_json
from dsd_lab.cli.verbs import finished, home, running, tools
from dsd_lab.files.printable import one_line
from dsd_lab.specs.near import did_you_mean
from dsd_lab.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; a test freezes it."""
    return _parser_and_verbs()[0]


def _parser_and_verbs() -> tuple[argparse.ArgumentParser, Verbs]:
    parser = argparse.ArgumentParser(
        prog="dsd-lab",
        description="Ablation sweeps of end-to-end latent diffusion: do the latents collapse, which change prevents it, and how certain is that?",
        epilog=f"example: dsd-lab sweep {SPEC} && dsd-lab report",
    )
    parser.add_argument("--version", action="version", version=f"dsd-lab {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    for kind in (running, finished, home, tools):
        kind.add(verbs)
    for verb in verbs.choices.values():
        answers_json(verb)
    return parser, verbs


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the words after `dsd-lab`; prints a correction and exits if that fails."""
    parser, verbs = _parser_and_verbs()
    if words and not words[0].startswith("-") and words[0] not in verbs.choices:
        near = did_you_mean(words[0], verbs.choices)
        meant = near if "did you mean" in near else "; `dsd-lab --help` lists them"
        parser.error(f"no verb {one_line(words[0])!r}{meant}")
    arguments, left = parser.parse_known_args(words)
    if left:
        parser.error(_unrecognised(words, left))
    return arguments


def _unrecognised(words: list[str], left: list[str]) -> str:
    """Message for words that no verb takes; mostly an override typed as two words."""
    shown = one_line(shlex.join(left))
    sets = [place for place, word in enumerate(words[:-2]) if word == "--set"]
    for key, value in ((words[place + 1], words[place + 2]) for place in sets):
        if "=" not in key and not value.startswith("-"):
            return f"--set {one_line(key)} {one_line(value)}: write --set {one_line(shlex.quote(f'{key}={value}'))}"
    if sets and "=" in left[0]:
        return f"{shown}: every override needs its own --set: write --set {one_line(shlex.quote(left[0]))}"
    return f"unrecognized arguments: {shown}"
