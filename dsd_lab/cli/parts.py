"""`dsd-lab parts`: list the parts that a spec can use, and where they are defined."""

from __future__ import annotations

import argparse

from dsd_lab.cli.options import print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.part_kinds import KINDS
from dsd_lab.specs.registry import parts_of, plugin_parts, plugins


def run(arguments: argparse.Namespace) -> int:
    """List the parts of a kind, or of all kinds."""
    if arguments.kind is not None and arguments.kind not in KINDS:
        raise BadInput(f"{arguments.kind}: no such kind of part{did_you_mean(arguments.kind, list(KINDS))}")
    rows = [row for kind in ([arguments.kind] if arguments.kind else KINDS) for row in _rows(kind)]
    if arguments.json:
        print_json({"parts": rows})
        return OK
    kind = None
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            say(f"{kind}: {row['field']}")
        say(f"  {row['name']} ({row['plugin'] or 'dsd-lab'}): {row['what'] or 'no description'} [{row['where']}]")
    return OK


def plugin_lines() -> list[str]:
    """A line per loaded plug-in: its digest and its parts."""
    lines = []
    for plugin in plugins.values():
        own = [f"{p.kind.replace('_', ' ')} {p.name}" for p in plugin_parts() if p.plugin == plugin]
        lines.append(f"plug-in {plugin.name} ({plugin.digest}): {', '.join(own) or 'no parts'}")
    return lines


def _rows(kind: str) -> list[dict[str, str | None]]:
    table = parts_of(kind)
    rows: list[dict[str, str | None]] = []
    if KINDS[kind].together:
        module = KINDS[kind].module.rpartition(".")[0]
        what = "computed together with the others of its kind"
        rows += [_row(kind, name, None, what, f"{module}.metrics") for name in KINDS[kind].shipped]
    for part in (table.part(name) for name in table):
        rows.append(_row(kind, part.name, None if part.plugin is None else part.plugin.name, part.summary, part.where))
    return rows


def _row(kind: str, name: str, plugin: str | None, what: str, where: str) -> dict[str, str | None]:
    return {"kind": kind, "name": name, "plugin": plugin, "field": KINDS[kind].field, "what": what, "where": where}
