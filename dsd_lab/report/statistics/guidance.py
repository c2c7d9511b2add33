"""Guidance at each variant's best scale, chosen for each seed by the other seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dsd_lab.report.groups import Group, range_of
from dsd_lab.report.statistics.intervals import estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell

SHOWN = {
    "fid": ("FID", 2),
    "kid": ("KID", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "label_accuracy": ("label accuracy", 3),
    "memorisation/nearest_train": ("nearest training image", 1),
}
"""First part of a metric's name, its label and its digits."""


@dataclass(frozen=True)
class Guided:
    """One variant's evaluations that differ only in the scale."""

    values: dict[float, dict[int, dict[str, float]]]
    """By scale and seed: the metrics of `SHOWN` that were measured. Only scales with an FID of every seed."""
    chosen: dict[int, float]
    """By seed: the scale with the lowest mean FID over the other seeds; with one seed, over that seed."""
    incomplete: dict[float, list[int]]
    """Scale that is left out -> seeds without a finite FID there."""


def guided(group: Group) -> list[Guided]:
    """Evaluations of a group's finished trials at two or more scales, grouped by their other settings."""
    families: dict[str, dict[float, dict[int, dict[str, float]]]] = {}
    for result in group.described:
        for evaluation, metrics in result.evaluations:
            values = {kind: v for kind in SHOWN if (v := _value(metrics, kind)) is not None}
            if "fid" not in values:
                continue
            settings = evaluation.model_dump(exclude={"guidance", "metrics", "inception_weights"}, mode="json")
            family = families.setdefault(json.dumps(settings, sort_keys=True), {})
            family.setdefault(evaluation.guidance, {})[result.seed] = values
    found = []
    for family in families.values():
        seeds = sorted({seed for by_seed in family.values() for seed in by_seed})
        complete = {scale: v for scale, v in sorted(family.items()) if v.keys() == set(seeds)}
        if len(complete) > 1:
            chosen = {}
            for seed in seeds:
                others = [s for s in seeds if s != seed] or seeds
                chosen[seed] = min(complete, key=lambda scale: _mean_fid(complete, scale, others))
            lacking = {
                scale: [s for s in seeds if s not in v] for scale, v in sorted(family.items()) if scale not in complete
            }
            found.append(Guided(complete, chosen, lacking))
    return found


def _mean_fid(values: dict[float, dict[int, dict[str, float]]], scale: float, seeds: Sequence[int]) -> float:
    return float(np.mean([values[scale][seed]["fid"] for seed in seeds]))


def _value(metrics: dict[str, float], kind: str) -> float | None:
    found = [v for name, v in metrics.items() if name.startswith(f"{kind}/")]
    return found[0] if found and math.isfinite(found[0]) else None


def guidance_table(groups: list[Group], looks: dict[str, str]) -> Table | None:
    """Two rows per variant: without guidance, and at the scale that the other seeds choose; None if no trial has two scales."""
    rows, numbers, dots, alone = [], [], [], False
    left_out = list[str]()
    for group in groups:
        for found in guided(group):
            alone = alone or len(found.chosen) == 1
            left_out += [
                f"{group.name} at {scale:g} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
                for scale, seeds in found.incomplete.items()
            ]
            picks = {"none": dict.fromkeys(found.chosen, 1.0)} if 1.0 in found.values else {}
            picks["chosen by the other seeds"] = found.chosen
            for how, scales in picks.items():
                cells = [Cell(group.name), Cell(how, ", ".join(f"{s:g}" for s in sorted(set(scales.values()))))]
                for kind, (_, digits) in SHOWN.items():
                    by_seed = {seed: found.values[scale][seed].get(kind) for seed, scale in scales.items()}
                    known = {seed: v for seed, v in by_seed.items() if v is not None}
                    made = estimate(list(known.values()), known, range_of(f"{kind}/"))
                    cells.append(estimate_cell(made, digits))
                    if made is not None:
                        numbers.append({"variant": group.variant, **group.point, "guidance": how, "scales": " ".join(f"{s:g}" for s in scales.values()), "metric": kind, **vars(made)})  # fmt: skip
                rows.append(cells)
                dots.append(looks[group.variant])
    if not rows:
        return None
    note = "Each seed is reported at the scale with the lowest mean FID over the other seeds, so that its own FID is not part of the choice."
    if alone:
        note += " With one seed, the scale is chosen on the trial that is reported, which makes its FID too low."
    if left_out:
        note += f" Scales without a finite FID of every seed are left out: {'; '.join(left_out)}."
    header = ["variant", "guidance", *(label for label, _ in SHOWN.values())]
    return Table("guidance", "Without guidance and at the best scale", header, rows, pd.DataFrame(numbers), note, dots)
