"""`dsd-lab compare`: compare two sweeps of a home folder by variant, paired by seed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from dsd_lab.cli.console import table_console
from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.lookup import find_manifest
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.report.groups import Group, columns_of, groups_of
from dsd_lab.report.page.narrative import imported_notice
from dsd_lab.report.results import Result, stored_results
from dsd_lab.report.statistics.comparisons import (
    Comparison,
    compare_pairs,
    comparison_row,
    comparison_table,
    conclusions,
)
from dsd_lab.specs.report import ReportSettings
from dsd_lab.store.artifacts import flat
from dsd_lab.store.mlflow_store import Store

_MAX_NAMED = 4
"""Variants that an error message lists."""


@dataclass(frozen=True)
class Side:
    """One of the two compared sweeps."""

    key: str
    manifest: Manifest
    results: list[Result]
    groups: dict[str, Group]


def run(arguments: argparse.Namespace) -> int:
    """Compare two sweeps."""
    home = home_of(arguments)
    manifests = [find_manifest(home, name, None) for name in (arguments.a, arguments.b)]
    if manifests[0].key == manifests[1].key:
        raise BadInput(
            f"{arguments.a} and {arguments.b} are the same sweep, {manifests[0].key}; `dsd-lab status` lists others"
        )
    settings = ReportSettings.model_validate(manifests[0].spec["report"])  # the settings of A apply to both
    store, sides = Store(home, arguments.tracking_uri), []
    for manifest in manifests:
        with stored_results(store, manifest) as results:
            pass
        own = ReportSettings.model_validate(manifest.spec["report"])
        sides.append(Side(manifest.key, manifest, results, {g.name: g for g in groups_of(results, own)}))
    a, b = sides
    if across := other_images({r.id: r.record for side in sides for r in side.results if r.description}):
        trial, what = next(iter(across.items()))
        raise BadInput(
            f"{a.key} and {b.key} have the same declared data but {len(across)} trials on different images, such as {trial} ({what}); change data.name or data.revision in one of them"
        )
    both = [name for name in a.groups if name in b.groups]
    if not both:
        raise BadInput(f"{a.key} and {b.key} share no variant: {_some(a.groups)} against {_some(b.groups)}")
    measured = {column.name for column in columns_of(b.results)}
    columns = [column for column in columns_of(a.results) if column.name in measured]
    comparisons = compare_pairs([(b.groups[name], a.groups[name]) for name in both], columns, settings)
    if not comparisons:
        raise BadInput(f"{a.key} and {b.key} have no seed that is finished in both, so nothing can be paired")
    answer = {
        "a": a.key,
        "b": b.key,
        "difference": "b minus a",
        "differing": differing_fields(a, b, both),
        "same_data": len({r.record.data.fingerprint for s in sides for r in s.results if r.description}) == 1,
        "variants": [_variant(a.groups[name], b.groups[name]) for name in both],
        "only_a": [name for name in a.groups if name not in b.groups],
        "only_b": [name for name in b.groups if name not in a.groups],
        "rows": [_row(c) for c in comparisons],
        "conclusions": conclusions(comparisons),
        "notices": imported_notice([r for side in sides for r in side.results]),
    }
    if arguments.json:
        print_json(answer)
    else:
        _print(answer, comparisons)
    return OK


def differing_fields(a: Side, b: Side, both: list[str]) -> dict[str, list[Any]]:
    """Training fields that differ between the sweeps in a common variant, with their values in A and B."""
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    sides = []
    for side in (a, b):
        canonical = {entry.id: flat(entry.canonical) for entry in side.manifest.trials}
        sides.append({name: canonical[side.groups[name].results[0].id] for name in both})
    for name in both:
        fields_a, fields_b = (side[name] for side in sides)
        for key in dict.fromkeys([*fields_a, *fields_b]):
            values = fields_a.get(key), fields_b.get(key)
            if values[0] != values[1]:
                for seen, value in zip(found.setdefault(key, ([], [])), values, strict=True):
                    if value not in seen:
                        seen.append(value)
    return {key: list(values) for key, values in found.items()}


def _variant(a: Group, b: Group) -> dict[str, Any]:
    ids = [{r.seed: r.id for r in g.finished} for g in (a, b)]
    shared = sorted(ids[0].keys() & ids[1].keys())
    return {
        "variant": a.variant,
        "point": a.point,
        "seeds": shared,
        "seeds_only_a": sorted(ids[0].keys() - ids[1].keys()),
        "seeds_only_b": sorted(ids[1].keys() - ids[0].keys()),
        "same_trials": sum(ids[0][seed] == ids[1][seed] for seed in shared),
        "healthy_a": [a.healthy, a.with_verdict],
        "healthy_b": [b.healthy, b.with_verdict],
    }


def _row(comparison: Comparison) -> dict[str, Any]:
    return {key: value for key, value in comparison_row(comparison).items() if key != "reference"}


def _print(answer: dict[str, Any], comparisons: list[Comparison]) -> None:
    console = table_console()

    say(f"{answer['b']} minus {answer['a']}, paired by seed, with 95 % intervals")
    for key, (before, after) in answer["differing"].items():
        say(f"  {key}: {_listed(before)} in {answer['a']}, {_listed(after)} in {answer['b']}")
    if not answer["differing"]:
        say("  no training fields differ")
    for notice in answer["notices"]:
        say(f"  {notice}")
    if not answer["same_data"]:
        say("  the data differ, so a seed selects different images: pairing removes less noise")
    made = comparison_table(comparisons, dict.fromkeys((c.group.variant for c in comparisons), ""))
    if made is not None:
        table = Table(box=None, pad_edge=False)
        for column in made.header:
            table.add_column(column)
        for row in made.rows:
            table.add_row(*(Text("\n".join(filter(None, (cell.text, *cell.detail.split("; "))))) for cell in row))
        console.print(table)
    for entry in answer["variants"]:
        name = ", ".join([entry["variant"], *(f"{k}={v}" for k, v in entry["point"].items())])
        healthy = "/".join(map(str, entry["healthy_a"])), "/".join(map(str, entry["healthy_b"]))
        same = f"; {entry['same_trials']} of the pairs are the same trial" if entry["same_trials"] else ""
        unpaired = [*entry["seeds_only_a"], *entry["seeds_only_b"]]
        left = f"; seeds without a partner: {_listed(unpaired)}" if unpaired else ""
        say(f"{name}: healthy {healthy[0]} -> {healthy[1]}; {len(entry['seeds'])} pairs{same}{left}")
    for which in ("a", "b"):
        if answer[f"only_{which}"]:
            say(f"only in {answer[which]}: {_listed(answer[f'only_{which}'])}")
    say(answer["conclusions"])


def _some(names: Iterable[str]) -> str:
    """The first names, short enough for an error message."""
    everything = list(names)
    first, rest = everything[:_MAX_NAMED], everything[_MAX_NAMED:]
    return "; ".join(first) + (f" and {len(rest)} more" if rest else "")


def _listed(values: Any) -> str:
    return ", ".join("-" if value is None else str(value) for value in values)
