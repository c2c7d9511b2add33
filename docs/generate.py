"""Writes the pages that are made from the code: `fields.md` from the Pydantic models, `cli.md` from the parser.

Run `python docs/generate.py` after a field or an option has changed; `tests/test_docs.py` compares.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from dsd_lab.specs.network import SIZES
from dsd_lab.specs.sweep import Sweep
from dsd_lab.specs.trial import Trial

DOCS = Path(__file__).resolve().parent
_MADE = "<!-- Made by docs/generate.py from the code. Do not edit. -->"
_LONGEST_DEFAULT = 40
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "mapping": "mappings", "text": "texts"}


def pages() -> dict[str, str]:
    """File name -> Markdown of every page that is made from the code."""
    return {"fields.md": _fields(), "cli.md": _cli()}


# -- Fields ----------------------------------------------------------------------------------------------------------


def _fields() -> str:
    sweep, trial = Sweep.model_json_schema(by_alias=True), Trial.model_json_schema()
    known = sweep["$defs"] | trial["$defs"]
    parts = [
        f"# Fields\n\n{_MADE}",
        "Every key of a spec, with its type, range and default. `dsd-lab schema` prints the same as JSON Schema for"
        " editors. [Specs](specs.md) explains how the keys work together.",
        "`base` and every variant hold the sections of a trial: "
        + ", ".join(f"[`{name}`](#{name})" for name in trial["properties"])
        + ".",
        "Defaults are ours where the paper publishes no value; the description of a field says so.",
        "## Keys of the file",
        _table(sweep["properties"], known, set(sweep["required"])),
        "`extends` names a spec file in the same folder or below, which this file inherits from.",
        "## Sections of a trial",
    ]
    for name, entry in trial["properties"].items():
        parts += _section(name, known[_reference(entry)], known)
        if name == "network":
            parts += [_sizes()]
        if name == "training":
            parts += [*_section("training.phases", known["Phase"], known)]
    parts += ["## Entries of evaluate", *_described(known["Generation"], known)]
    parts += ["## Section report", *_described(known["ReportSettings"], known)]
    parts += _section("report.tuned", known["Tuning"], known)
    return "\n\n".join(parts) + "\n"


def _section(name: str, schema: dict[str, Any], known: dict[str, Any]) -> list[str]:
    return [f"### {name}", *_described(schema, known)]


def _described(schema: dict[str, Any], known: dict[str, Any]) -> list[str]:
    said = schema.get("description", "")
    return [*([_cell(said)] if said else []), _table(schema["properties"], known, set(schema.get("required", ())))]


def _table(properties: dict[str, Any], known: dict[str, Any], required: set[str]) -> str:
    rows = ["| key | type | range | default | description |", "|---|---|---|---|---|"]
    for name, entry in properties.items():
        kind, span = _kind(entry, known)
        default = "required" if name in required else _default(entry, name in next(iter(SIZES.values())))
        rows.append(f"| `{name}` | {kind} | {span} | {default} | {_cell(entry.get('description', ''))} |")
    return "\n".join(rows)


def _reference(entry: dict[str, Any]) -> str:
    found = entry.get("$ref") or next((part["$ref"] for part in entry.get("allOf", ()) if "$ref" in part), "")
    return str(found).rpartition("/")[2]


def _kind(entry: dict[str, Any], known: dict[str, Any]) -> tuple[str, str]:
    """Type and range in words."""
    if name := _reference(entry):
        return ("mapping", "") if known[name].get("type") == "object" else _kind(known[name], known)
    if "anyOf" in entry:
        parts = [_kind(part, known) for part in entry["anyOf"]]
        kinds, spans = (list(dict.fromkeys(filter(None, column))) for column in zip(*parts, strict=True))
        return " or ".join(kinds), "; ".join(spans)
    if "const" in entry:
        return f"`{entry['const']}`", ""
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"]), ""
    kind = str(entry.get("type", "any"))
    if kind == "array":
        inner, span = _kind(entry.get("items", {}), known)
        counted = [f"at least {n}" for n in [entry.get("minItems")] if n] + [
            f"at most {n}" for n in [entry.get("maxItems")] if n
        ]
        return f"list of {_PLURALS.get(inner, inner)}", "; ".join(filter(None, [span, _entries(counted)]))
    words = {"integer": "whole number", "string": "text", "object": "mapping", "boolean": "`true` or `false`"}
    return words.get(kind, kind), _limits(entry)


def _entries(counted: list[str]) -> str:
    return f"{' and '.join(counted)} {'entry' if counted == ['at least 1'] else 'entries'}" if counted else ""


def _limits(entry: dict[str, Any]) -> str:
    found = _span(entry.get("minimum"), entry.get("maximum"), "", "")
    strict = _span(entry.get("exclusiveMinimum"), entry.get("exclusiveMaximum"), "above ", "below ")
    return ", ".join(filter(None, [strict, found] if "exclusiveMinimum" in entry else [found, strict]))


def _span(low: Any, high: Any, above: str, below: str) -> str:
    if low is not None and high is not None and not above:
        return f"{_number(low)} to {_number(high)}"
    parts = [f"{above or 'from '}{_number(low)}"] if low is not None else []
    parts += [f"{below or 'up to '}{_number(high)}"] if high is not None else []
    return ", ".join(parts)


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:,}" if isinstance(value, int) and value < 10**6 else f"{value:g}"


def _default(entry: dict[str, Any], by_size: bool) -> str:
    if by_size:
        return "by `size`"
    if "default" not in entry:
        return ""
    value = entry["default"]
    if isinstance(value, dict):
        return "see there" if value else "`{}`"
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`" if text and len(text) < _LONGEST_DEFAULT else "empty"


def _sizes() -> str:
    columns = list(next(iter(SIZES.values())))
    rows = [f"| size | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    rows += [f"| `{name}` | {' | '.join(str(v) for v in row.values())} |" for name, row in SIZES.items()]
    return "Values that a `size` stands for:\n\n" + "\n".join(rows)


# -- The command line ------------------------------------------------------------------------------------------------


def _cli() -> str:
    os.environ.pop("RAY_ADDRESS", None)  # a default that the page must not take from the machine
    from dsd_lab.cli.parser import build_parser

    verbs = _verbs(build_parser())
    parts = [
        f"# Command line\n\n{_MADE}",
        "`dsd-lab VERB`. In a clone the program is `.venv/bin/dsd-lab`. Every verb takes `--help`."
        " With `--json` the answer is JSON on standard output; messages go to standard error.",
        "Verbs: " + ", ".join(f"[`{name}`](#dsd-lab-{name})" for name in verbs) + ".",
        "## Exit codes",
        "| code | meaning |\n|---|---|\n"
        "| 0 | all done |\n"
        "| 1 | unexpected error |\n"
        "| 2 | bad input: a spec, an option or a file is wrong |\n"
        "| 3 | some trials failed; a trial that diverged is a result and does not count |\n"
        "| 4 | resources: disk, cluster, a missing package or a place that cannot be written |\n"
        "| 130 | ended by Ctrl-C |\n"
        "| 143 | ended by SIGTERM, SIGUSR1 or SIGHUP |",
        "After 130 and 143 the same command continues from the last checkpoint.",
    ]
    for name, verb in verbs.items():
        parts += _verb(name, verb)
    return "\n\n".join(parts) + "\n"


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def _verb(name: str, verb: argparse.ArgumentParser) -> list[str]:
    actions = [a for a in verb._actions if a.dest != "help"]
    places = [a for a in actions if not a.option_strings]
    usage = " ".join(["dsd-lab", name, *map(_place, places), "[options]"])
    rows = ["| argument | meaning |", "|---|---|"]
    ordered = [*places, *(a for a in actions if a.option_strings)]
    rows += [f"| {_named(a)} | {_cell(_help(a, verb))} |" for a in ordered]
    example = (verb.epilog or "").removeprefix("example: ")
    return [
        f"## dsd-lab {name}",
        _cell(verb.description or ""),
        f"```console\n$ {example}\n```",
        f"Usage: `{usage}`",
        "\n".join(rows),
    ]


def _place(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest)
    return {"+": f"{word} ...", "*": f"[{word} ...]", "?": f"[{word}]"}.get(str(action.nargs), word)


def _named(action: argparse.Action) -> str:
    if not action.option_strings:
        text = str(action.metavar or action.dest)
    else:
        takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        text = f"{action.option_strings[-1]}{takes}"
    choices = f": {', '.join(f'`{c}`' for c in action.choices)}" if action.choices else ""
    return f"`{text.replace('|', '` or `')}`" + choices


def _help(action: argparse.Action, verb: argparse.ArgumentParser) -> str:
    said = (action.help or "") % {**vars(action), "prog": verb.prog}
    return said + ("; repeatable" if isinstance(action, argparse._AppendAction) and "repeatable" not in said else "")


def _cell(text: str) -> str:
    """Text that may stand in a cell of a table: one line, bars escaped, no HTML."""
    line = re.sub(r"\s+", " ", text).strip()
    parts = re.split(r"(`[^`]*`)", line)
    shown = [p if p.startswith("`") else p.replace("<", "&lt;").replace("*", "\\*") for p in parts]
    return "".join(shown).replace("|", "\\|")


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
