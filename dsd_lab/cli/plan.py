"""`dsd-lab plan`: what a spec resolves to, what it will need, and what is done."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import table_console
from dsd_lab.cli.options import home_of, plan_of, print_json
from dsd_lab.cli.parts import plugin_lines
from dsd_lab.errors import OK, BadInput
from dsd_lab.evaluation.reference import check_files
from dsd_lab.files.printable import say
from dsd_lab.home.data_facts import known_facts, skipped
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.trial_folder import OTHER_IMAGES, state_notes
from dsd_lab.planning.data_check import check_data
from dsd_lab.planning.disk import need_of
from dsd_lab.planning.estimates import EFFICIENCY, Shape, cached_bytes, cached_shape, shape_key, timed_seconds
from dsd_lab.planning.gpus import GPUS
from dsd_lab.planning.measured import benched_seconds, machine_ceiling
from dsd_lab.planning.requirements import missing_data, missing_weights
from dsd_lab.runs.data_shelf import DataShelf, refuse_other_images, trained_on_others
from dsd_lab.specs.evaluate_list import applies
from dsd_lab.specs.identity import canonical_fields, evaluation_id
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.registry import plugins
from dsd_lab.specs.sweep import Plan, PlannedTrial
from dsd_lab.specs.trial import Data, Trial
from dsd_lab.training_code import training_code
from dsd_lab.units import duration, readable, short_bytes, short_count

TIMED, BENCHED = "timed here", "from dsd-lab bench"
"""Where a time comes from, if not from FLOPs: trials of the shape that were trained here, or a benchmark of it."""
_ROLES = ("encode", "denoise", "decode")
_MOST_ROWS = 1000
"""Trials up to which each has a line of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Show a plan."""
    plan, home = plan_of(arguments), home_of(arguments)
    for missing in missing_data(plan):
        say(f"dsd-lab: warning: {missing}; `sweep` will refuse", error=True)
    lines = check_data(home, plan.trials, plan.spec.evaluate, decode="small")
    facts_of = partial(known_facts, home)
    left_out = once_for_seeds(lambda fields: skipped(fields, facts_of(fields.data)))
    for line in dict.fromkeys(left_out(t.fields) for t in plan.trials):
        if line:
            say(f"dsd-lab: warning: {line}", error=True)
    for missing in missing_weights(plan):
        say(f"dsd-lab: warning: {missing}; `sweep` will refuse", error=True)
    try:
        check_files(plan.spec.evaluate, home)
    except BadInput as error:
        say(f"dsd-lab: warning: {error}; `sweep` will refuse", error=True)
    changed = _other_images(home, plan)
    code = training_code()
    manifest = manifest_of(plan)
    timed = timed_seconds(home, manifest.trials)
    needs = once_for_seeds(lambda fields: _needs(fields, home, code, timed, arguments.gpu, facts_of))
    rows = []
    for trial in plan.trials:
        folder = home.trial(trial.id)
        rows.append(
            {
                "id": trial.id,
                "variant": trial.variant,
                "point": trial.point,
                "seed": trial.seed,
                "size": trial.fields.network.size,
                "status": OTHER_IMAGES if trial.id in changed else folder.state(code),
                "evaluations_missing": _missing(plan, folder.evaluations(), trial),
                "overrides": trial.overrides,
                **needs(trial.fields),
            }
        )
    if arguments.json:
        sweep = {
            "name": plan.spec.name,
            "key": plan.key,
            "profile": plan.profile,
            "why": manifest.why,
            "trials": len(rows),
            "evaluations": manifest.evaluations,
            "plugins": {p.name: {"digest": p.digest, "path": str(p.path)} for p in plugins.values()},
        }
        print_json({"sweep": sweep, "trials": rows})
    else:
        for line in lines:
            say(line)
        _print(plan, rows)
        for line in plugin_lines():
            say(line)
        for note in state_notes((row["status"] for row in rows), code):
            say(note)
    return OK


def _other_images(home: Home, plan: Plan) -> set[str]:
    """Trials that were trained on other images than those at hand, after a warning; what is not at hand is not asked for."""
    missing = missing_data(plan)
    there = [t for t in plan.trials if t.fields.data.path not in missing]
    shelf = DataShelf()
    try:
        refuse_other_images(home, there, shelf)
    except BadInput as error:
        say(f"dsd-lab: warning: {error}; `sweep` will refuse", error=True)
        return trained_on_others(home, there)
    return set()


def _needs(
    trial: Trial,
    home: Home,
    code: str,
    timed: dict[str, float],
    gpu: str,
    facts_of: Callable[[Data], dict[str, Any] | None],
) -> dict[str, Any]:
    """What a trial with these fields will need, whatever its seed."""
    shape, training = cached_shape(trial, home, code), trial.training
    seconds, source = _seconds(trial, shape, timed, home, gpu)
    return {
        "params": shape.params,
        "copies": shape.copies,
        "auxiliary_params": shape.auxiliary,
        "frozen_params": shape.frozen,
        "flops_per_image": shape.flops_per_image,
        "flops_by_role": shape.role_flops,
        "flops_total": shape.flops_per_image * training.batch_size * training.steps,
        "memory_bytes": shape.memory(training, cached_bytes(trial, home, code)),
        "disk_bytes": need_of(trial, home, code).total,
        "seconds": round(seconds, 3),
        "seconds_source": source,
        "data": facts_of(trial.data),
    }


def _seconds(trial: Trial, shape: Shape, timed: dict[str, float], home: Home, gpu: str) -> tuple[float, str]:
    """Seconds of a whole trial and where they come from: the best of what is known.

    Args:
        trial: its fields.
        shape: its counts.
        timed: seconds a step of trained trials, by shape.
        home: where `dsd-lab bench` has kept figures.
        gpu: that trials on one are planned for.
    """
    training = trial.training
    key = shape_key(canonical_fields(trial))
    if key in timed:
        return timed[key] * training.steps, TIMED
    benched = benched_seconds(home, trial, gpu)
    if benched is not None:
        return benched[0], f"{BENCHED} on {benched[1]}"
    flops = shape.flops_per_image * training.batch_size * training.steps
    if trial.resources.gpus > 0:
        peak = GPUS[gpu].peak(training.precision) * min(1.0, trial.resources.gpus)
        return flops / (peak * EFFICIENCY), f"from FLOPs, {gpu}"
    return flops / (machine_ceiling(home, trial.resources.threads) * EFFICIENCY), "from FLOPs"


def _missing(plan: Plan, done: dict[str, Any], trial: PlannedTrial) -> int:
    return sum(evaluation_id(e) not in done for e in plan.spec.evaluate if applies(e, trial.fields))


def _print(plan: Plan, rows: list[dict[str, Any]]) -> None:
    console = table_console()
    table = Table(box=None, pad_edge=False)
    numbers = ("seed", "parameters", "FLOPs/image", "memory", "time")
    for column in (
        "id",
        "variant",
        "size",
        "seed",
        "status",
        "parameters",
        "FLOPs/image",
        "memory",
        "time",
        "overrides",
    ):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=column != "overrides")
    for row in rows if len(rows) <= _MOST_ROWS else _points(rows):
        mark = "~" if row["seconds_source"].startswith("from FLOPs") else ""
        params, flops, memory = (
            short_count(row["params"]["total"]),
            short_count(row["flops_per_image"]),
            short_bytes(row["memory_bytes"]),
        )
        overrides = " ".join(
            f"{k.rsplit('.', 1)[-1]}={v}" for k, v in row["overrides"].items() if k not in row["point"]
        )
        table.add_row(
            row["id"],
            _name(row),
            row["size"],
            str(row["seed"]),
            row["status"],
            params,
            flops,
            memory,
            mark + duration(row["seconds"]),
            overrides,
        )
    console.print(table)
    console.print(_roles(rows))
    states = Counter(row["status"] for row in {row["id"]: row for row in rows}.values())
    distinct = sum(states.values())
    shared = f", {len(rows) - distinct} of them the same as others" if distinct < len(rows) else ""
    left = sum(
        r["seconds"] for r in {r["id"]: r for r in rows}.values() if r["status"] not in ("done", "diverged", "stale")
    )
    disk = sum(
        r["disk_bytes"] for r in {r["id"]: r for r in rows}.values() if r["status"] not in ("done", "diverged", "stale")
    )
    evaluations = sum(r["evaluations_missing"] for r in rows if r["status"] == "done")
    console.print(
        f"{plan.key}: {len(rows)} trials{shared}: {', '.join(f'{n} {s}' for s, n in sorted(states.items()))}",
        highlight=False,
    )
    if evaluations:
        console.print(
            f"{evaluations} evaluations of finished trials are missing; sweep makes them without training",
            highlight=False,
        )
    console.print(f"about {duration(left)} of training left, one trial at a time{_origin(rows)}", highlight=False)
    console.print(f"about {readable(disk)} of disk for what is not done", highlight=False)


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all seeds of a variant and grid point: their number, and the states that they are in."""
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


def _origin(rows: list[dict[str, Any]]) -> str:
    """Where the times come from, in words."""
    sources = sorted({row["seconds_source"] for row in rows})
    notes = [f"{_some(rows, source)} {source}" for source in sources if source.startswith(BENCHED)]
    told = [s.removeprefix("from FLOPs").removeprefix(", ") for s in sources if s.startswith("from FLOPs")]
    if told:
        ceilings = " or ".join(f"one {name.upper()}'s" if name else "this machine's" for name in told)
        notes.append(f"~: FLOPs at {EFFICIENCY:.0%} of {ceilings} matrix products")
    return f" ({'; '.join(notes)})" if notes else ""


def _some(rows: list[dict[str, Any]], source: str) -> str:
    count = sum(row["seconds_source"] == source for row in rows)
    return f"{count} of {len(rows)} trials"


def _name(row: dict[str, Any]) -> str:
    return str(row["variant"]) + "".join(f" {k.rsplit('.', 1)[-1]}={v}" for k, v in row["point"].items())


def _roles(rows: list[dict[str, Any]]) -> Table:
    """Weights and forward FLOPs by role, one line for all variants that share them."""
    table = Table(box=None, pad_edge=False)
    roles = ("total", "encode", "denoise", "decode", "heads", "shared")
    for role in roles:
        table.add_column(role, justify="right")
    beside = {"auxiliary_params": "auxiliary heads", "frozen_params": "frozen models"}
    beside = {key: name for key, name in beside.items() if any(row[key] for row in rows)}
    table.add_column("EMA copies", justify="right")
    for name in beside.values():
        table.add_column(name, justify="right")
    for role in _ROLES:
        table.add_column(f"{role} FLOPs", justify="right")
    table.add_column("weights, and FLOPs of one forward pass for an image, of")
    shapes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        same = (row["params"], row["copies"], row["flops_by_role"], *(row[key] for key in beside))
        shapes.setdefault(repr(same), []).append(row)
    for members in shapes.values():
        names = list(dict.fromkeys(_name(row) for row in members))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        first = members[0]
        counts = [*(first["params"][r] for r in roles), sum(first["copies"].values()), *(first[key] for key in beside)]
        counts += [first["flops_by_role"][role] for role in _ROLES]
        table.add_row(*map(short_count, counts), shown)
    return table
