"""Print a plan: trials, networks and totals, within 100 columns where names allow."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import table_console
from dsd_lab.files.printable import say
from dsd_lab.planning.estimates import ASSUMED_MFU, speedup
from dsd_lab.specs.sweep import Plan
from dsd_lab.units import duration, readable, short_bytes, short_count

FROM_BENCH = "from dsd-lab bench"
"""Prefix of a time's source if a benchmark measured it."""
_ROLES = ("encode", "denoise", "decode")
_MAX_ROWS = 1000
"""Maximum of trials that are listed one by one."""
_COLUMNS = 100
_MAX_NAMES = 8
_ENDED = ("done", "diverged", "stale")


def print_plan(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Print a plan.

    Args:
        plan: of the sweep.
        rows: its trials, as in `plan --json`.
    """
    table_console().print(_trials(rows))
    for line in (*_differences(rows), *_networks(rows), *_totals(plan, rows)):
        print_wrapped(line)


def print_wrapped(line: str) -> None:
    """Print a line, wrapped at 100 columns."""
    for part in textwrap.wrap(line, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
        say(part)


def _trials(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("id", "variant", "seed", "status", "weights", "FLOPs/image", "memory", "time"):
        right = column not in ("id", "variant", "status")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "variant", overflow="fold")
    for row in rows if len(rows) <= _MAX_ROWS else _points(rows):
        table.add_row(
            row["id"],
            _name(row),
            str(row["seed"]),
            row["status"],
            short_count(row["params"]["total"]),
            short_count(row["flops_per_image"]),
            f"~{short_bytes(row['memory_bytes'])}",
            _mark(row) + duration(row["seconds"]),
        )
    return table


def _mark(row: dict[str, Any]) -> str:
    return "~" if row["seconds_source"].startswith("from FLOPs") else ""


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all seeds of a variant and grid point, with their number and states."""
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault(_name(row), []).append(row)
    return [
        members[0]
        | {
            "id": f"{members[0]['id']} and {len(members) - 1} more" if len(members) > 1 else members[0]["id"],
            "seed": f"{len(members)} seeds",
            "status": ", ".join(f"{n} {state}" for state, n in sorted(Counter(r["status"] for r in members).items())),
        }
        for members in points.values()
    ]


def _name(row: dict[str, Any]) -> str:
    return str(row["variant"]) + "".join(f" {k.rsplit('.', 1)[-1]}={v}" for k, v in row["point"].items())


def _differences(rows: list[dict[str, Any]]) -> Iterable[str]:
    """The overrides of each variant, one line per variant."""
    gpus = {}
    for row in rows:
        changed = {k.rsplit(".", 1)[-1]: v for k, v in row["overrides"].items() if k not in row["point"]}
        gpus[row["variant"]] = " ".join(f"{k}={v}" for k, v in changed.items())
    return (f"{variant}: {changes}" for variant, changes in gpus.items() if changes)


def _networks(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Parameters and forward FLOPs by role, one line for all variants that share them."""
    shapes: dict[str, list[dict[str, Any]]] = {}
    keys = ("params", "copies", "flops_by_role", "auxiliary_params", "frozen_params", "size")
    for row in rows:
        shapes.setdefault(repr([row[key] for key in keys]), []).append(row)
    for members in shapes.values():
        first, names = members[0], list(dict.fromkeys(_name(row) for row in members))
        shown = ", ".join(names[:_MAX_NAMES]) + (
            f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        )
        params = {role: first["params"][role] for role in (*_ROLES, "heads", "shared")}
        others = {
            "in EMA copies": sum(first["copies"].values()),
            "in auxiliary heads": first["auxiliary_params"],
            "in frozen models": first["frozen_params"],
        }
        whose = "all" if len(shapes) == 1 else shown
        yield (
            f"{whose}: network {first['size']}, {short_count(first['params']['total'])} parameters ({_counts(params)}); "
            f"{', '.join(f'{short_count(n)} {what}' for what, n in others.items() if n)}; "
            f"forward FLOPs per image: {_counts(first['flops_by_role'])}"
        )


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {short_count(n)}" for name, n in numbers.items() if n)


def _totals(plan: Plan, rows: list[dict[str, Any]]) -> Iterable[str]:
    distinct = list({row["id"]: row for row in rows}.values())
    states = Counter(row["status"] for row in distinct)
    shared = f", {len(rows) - len(distinct)} of them duplicates" if len(distinct) < len(rows) else ""
    yield f"{plan.key}: {len(rows)} trials{shared}: {', '.join(f'{n} {s}' for s, n in sorted(states.items()))}"
    if evaluations := sum(r["evaluations_missing"] for r in rows if r["status"] == "done"):
        yield f"{evaluations} evaluations of finished trials are missing; `sweep` makes them without training"
    left = [row for row in distinct if row["status"] not in _ENDED]
    seconds = sum(row["seconds"] for row in left)
    if begun := [row for row in left if row["begins_from"]]:
        first = begun[0]
        yield (
            f"{len(begun)} of them start from checkpoints of other trials, such as {first['id']} from step "
            f"{first['begins_from']['step']:,} of {first['begins_from']['trial']}; their times count all steps"
        )
    yield f"about {duration(seconds)} of training left, one trial at a time{_origin(rows)}"
    if gpus := max((row["gpus"] for row in left), default=0):
        hours = sum(row["seconds"] * row["gpus"] for row in left) / 3600
        memory = short_bytes(max(row["memory_bytes"] for row in left))
        many = "1 GPU" if gpus <= 1 else f"{gpus:g} GPUs, one process on each,"
        yield f"a trial needs {many} with at least ~{memory}; about {hours:,.1f} GPU-hours for all"
    if left and (processes := (largest := max(left, key=lambda row: row["processes"]))["processes"]) > 1:
        found = largest["efficiency"]
        how = "assumed (`dsd-lab bench --processes` measures it)" if found is None else "measured by `dsd-lab bench`"
        yield f"a trial has {processes} processes, {speedup(processes, found):.1f} times as fast as one: {how}"
    yield f"about {readable(sum(row['disk_bytes'] for row in left))} of disk space for unfinished trials"


def _origin(rows: list[dict[str, Any]]) -> str:
    """Where the times come from, as text."""
    sources = sorted({row["seconds_source"] for row in rows})
    notes = [f"{_some(rows, source)} {source}" for source in sources if source.startswith(FROM_BENCH)]
    gpus = [s.removeprefix("from FLOPs").removeprefix(", ") for s in sources if s.startswith("from FLOPs")]
    if gpus:
        ceilings = " or ".join(f"one {name.upper()}'s" if name else "this machine's" for name in gpus)
        notes.append(f"~: from FLOPs, assuming {ASSUMED_MFU:.0%} MFU of {ceilings} peak")
    return f" ({'; '.join(notes)})" if notes else ""


def _some(rows: list[dict[str, Any]], source: str) -> str:
    count = sum(row["seconds_source"] == source for row in rows)
    return f"{count} of {len(rows)} trials"
