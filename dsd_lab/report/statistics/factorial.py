"""Effects of DSD's changes in the nested design target {live, stop-gradient, EMA} x output {velocity, clean}.

A simple effect is the effect of one factor at one level of the other. A main effect is the mean of a factor's simple
effects over the levels of the other. An interaction is the difference between simple effects. Cells are identified by
the fields of the trials, not by names of variants. An EMA target has no gradient, so EMA comes after the stop-gradient:
it is a third level of that factor, not a third factor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pandas as pd

from dsd_lab.report.groups import EFFECT_COLUMNS, Column, Group, points_of
from dsd_lab.report.statistics.comparisons import by_chance
from dsd_lab.report.statistics.intervals import Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.identity import TRAINING_SECTIONS
from dsd_lab.specs.report import ReportSettings

Place = tuple[str, str]
"""Target and network output."""
NAIVE, STOPPED, CLEAN, BOTH, FULL, AVERAGED = (
    ("live", "velocity"),
    ("stop_gradient", "velocity"),
    ("live", "clean"),
    ("stop_gradient", "clean"),
    ("ema", "clean"),
    ("ema", "velocity"),
)
STEPS = ("stop-gradient", "clean prediction", "EMA target")
_ALONE, _CLEAN_ALONE, _TOGETHER, _ON_TOP = (
    "simple effect: stop-gradient, velocity output",
    "simple effect: clean prediction, live target",
    "both together: naive to stop-gradient and clean prediction",
    "simple effect: EMA after stop-gradient, clean output",
)
_EFFECTS: tuple[tuple[str, dict[Place, float]], ...] = (
    ("main effect: stop-gradient, mean over outputs", {STOPPED: 0.5, BOTH: 0.5, NAIVE: -0.5, CLEAN: -0.5}),
    (
        "main effect: clean prediction, mean over live and stop-gradient targets",
        {CLEAN: 0.5, BOTH: 0.5, NAIVE: -0.5, STOPPED: -0.5},
    ),
    (
        "main effect: clean prediction, mean over all three targets",
        {CLEAN: 1 / 3, BOTH: 1 / 3, FULL: 1 / 3, NAIVE: -1 / 3, STOPPED: -1 / 3, AVERAGED: -1 / 3},
    ),
    ("main effect: EMA after stop-gradient, mean over outputs", {AVERAGED: 0.5, FULL: 0.5, STOPPED: -0.5, BOTH: -0.5}),
    (_ALONE, {STOPPED: 1, NAIVE: -1}),
    ("simple effect: stop-gradient, clean output", {BOTH: 1, CLEAN: -1}),
    (_CLEAN_ALONE, {CLEAN: 1, NAIVE: -1}),
    ("simple effect: clean prediction, stop-gradient target", {BOTH: 1, STOPPED: -1}),
    ("simple effect: clean prediction, EMA target", {FULL: 1, AVERAGED: -1}),
    ("simple effect: EMA after stop-gradient, velocity output", {AVERAGED: 1, STOPPED: -1}),
    (_ON_TOP, {FULL: 1, BOTH: -1}),
    ("interaction: (live, stop-gradient) x output", {BOTH: 1, STOPPED: -1, CLEAN: -1, NAIVE: 1}),
    ("interaction: (EMA, stop-gradient) x output", {FULL: 1, BOTH: -1, AVERAGED: -1, STOPPED: 1}),
    (_TOGETHER, {BOTH: 1, NAIVE: -1}),
    ("all three: naive to DSD", {FULL: 1, NAIVE: -1}),
)
"""Weights of the cells' values. The interaction is the second simple effect of the first factor minus its first."""
_AGAINST = 0.05
"""Share by which a step may work against the recovery and still count as part of it."""
_DEPENDENT = ("target", "target_decay", "output", "loss_space", "weighting", "clamp")
"""Objective fields that may differ between the cells of a design: the factors and what has a meaning in some cells only."""


@dataclass(frozen=True)
class Effect:
    """An effect in one quantity, from differences within seeds."""

    point: dict[str, Any]
    name: str
    column: Column
    estimate: Estimate
    share: float | None = None
    """For Shapley values: fraction of the whole recovery; None if its interval contains 0 or a step has the other sign."""


def designs_of(groups: list[Group]) -> list[dict[Place, Group]]:
    """The cells of every grid point with at least the 2 x 2 design of live / stop-gradient and velocity / clean.

    Trials of one design agree in all other fields. If two variants have the same cell, the first is used.
    """
    found = []
    for members in points_of(groups).values():
        designs: dict[str, dict[Place, Group]] = {}
        for group in members:
            fields = next((r.record.fields for r in group.results if r.description), None)
            if fields is None or fields["objective"]["noised"] != "live" or not fields["objective"]["diffusion_weight"]:
                continue
            objective = fields["objective"]
            same = {k: v for k, v in objective.items() if k not in _DEPENDENT}
            trained = {k: fields.get(k) for k in TRAINING_SECTIONS if k != "objective"}
            place = (objective["target"], objective["output"])
            designs.setdefault(json.dumps([same, trained], sort_keys=True), {}).setdefault(place, group)
        found += [d for d in designs.values() if {NAIVE, STOPPED, CLEAN, BOTH} <= d.keys()][:1]
    return found


def effects_of(design: dict[Place, Group], settings: ReportSettings) -> list[Effect]:
    """All effects that can be computed from the design's cells, in every quantity."""
    point, found = design[NAIVE].point, []
    for column in EFFECT_COLUMNS:
        values = {place: group.values(column.name, settings) for place, group in design.items()}
        for name, signs in _EFFECTS:
            if signs.keys() <= design.keys():
                seeds = sorted(set.intersection(*(set(values[p]) for p in signs)))
                total = estimate([sum(sign * values[p][s] for p, sign in signs.items()) for s in seeds], seeds)
                if total is not None:
                    found.append(Effect(point, name, column, total))
        found += _shapley(point, column, values)
    return found


def orders_of(places: set[Place]) -> list[tuple[str, ...]]:
    """The orders of the three steps from naive to DSD for which all intermediate cells were trained."""
    return [order for order in permutations(STEPS) if _path(order) is not None and set(_path(order) or ()) <= places]


def _path(order: tuple[str, ...]) -> list[Place] | None:
    """The cells along an order; None if EMA comes before the stop-gradient."""
    target, output, path = "live", "velocity", [NAIVE]
    for step in order:
        if step == "EMA target" and target == "live":
            return None
        target = {"stop-gradient": "stop_gradient", "EMA target": "ema"}.get(step, target)
        output = "clean" if step == "clean prediction" else output
        path.append((target, output))
    return path


def _shapley(point: dict[str, Any], column: Column, values: dict[Place, dict[int, float]]) -> list[Effect]:
    """Each step's contribution to the recovery from naive to DSD, averaged over the possible orders."""
    orders = orders_of(set(values))
    if not orders:
        return []
    paths = {order: _path(order) or [] for order in orders}
    seeds = sorted(set.intersection(*(set(values[p]) for path in paths.values() for p in path)))
    whole = estimate([values[FULL][s] - values[NAIVE][s] for s in seeds], seeds)
    if whole is None:
        return []
    certain = whole.ci_low is not None and whole.ci_high is not None and whole.ci_low * whole.ci_high > 0
    parts = {step: _gain(step, paths, values, seeds) for step in STEPS}
    shares = {step: part.mean / whole.mean for step, part in parts.items() if part is not None and certain}
    if not all(-_AGAINST <= share <= 1 + _AGAINST for share in shares.values()):
        shares = {}
    return [
        Effect(point, f"Shapley value of {step}", column, part, shares.get(step))
        for step, part in parts.items()
        if part is not None
    ]


def _gain(
    step: str, paths: dict[tuple[str, ...], list[Place]], values: dict[Place, dict[int, float]], seeds: list[int]
) -> Estimate | None:
    """The gain of a step, averaged over the orders, for every seed."""
    gains = []
    for seed in seeds:
        steps = [
            values[path[order.index(step) + 1]][seed] - values[path[order.index(step)]][seed]
            for order, path in paths.items()
        ]
        gains.append(sum(steps) / len(steps))
    return estimate(gains, seeds)


def effect_table(groups: list[Group], settings: ReportSettings) -> Table | None:
    """Effects by grid point; None if no grid point has the design."""
    designs = designs_of(groups)
    several = len(designs) > 1
    effects: list[Effect] = []
    by_row: dict[tuple[str, str], dict[str, Effect]] = {}
    for design in designs:
        for effect in effects_of(design, settings):
            effects.append(effect)
            where = design[NAIVE].point_name if several else ""
            by_row.setdefault((where, effect.name), {})[effect.column.name] = effect
    if not effects:
        return None
    rows = []
    for (where, name), found in by_row.items():
        seeds = str(max(e.estimate.n for e in found.values()))
        cells = [_cell(found.get(c.name), c.digits) for c in EFFECT_COLUMNS]
        rows.append([*([Cell(where)] if several else []), Cell(name), Cell(seeds), *cells])
    header = [*(["at"] if several else []), "effect", "seeds", *(c.label for c in EFFECT_COLUMNS)]
    names = ", ".join(f"{g.variant} = {_words(p)}" for p, g in designs[0].items())
    orders = orders_of(set(designs[0]))
    note = (
        f"Differences within seeds, with 95 % intervals of their mean. Cells: {names}. "
        "A simple effect is the effect of one change at one level of the other factor; a main effect is the mean of a change's simple "
        "effects over those levels; an interaction is the difference between them, the effect of both beyond the sum of each. "
        f"{by_chance([e.estimate for e in effects])}"
    )
    if orders:
        note += (
            f" Shapley value: a step's gain averaged over the {len(orders)} orders of the three steps for which all stages were trained "
            f"({'; '.join(', '.join(order) for order in orders)}); EMA cannot come before the stop-gradient. "
            "Its share of the recovery from naive to DSD is given if the interval of the recovery does not contain 0 and no step has the other sign."
        )
    frame = pd.DataFrame([effect_row(e) for e in effects])
    return Table("effects", "What each change does, alone and together", header, rows, frame, note)


def _cell(effect: Effect | None, digits: int) -> Cell:
    if effect is None:
        return Cell("-")
    share = "" if effect.share is None else f"{effect.share:.0%} of the recovery"
    return estimate_cell(effect.estimate, digits, signed=True, more=share)


def _words(place: Place) -> str:
    target = {"live": "live target", "stop_gradient": "stop-gradient", "ema": "EMA target"}[place[0]]
    return f"{target}, {place[1]}"


def effect_row(effect: Effect) -> dict[str, Any]:
    """The numbers of an effect, for CSV and JSON."""
    return {
        **effect.point,
        "effect": effect.name,
        "metric": effect.column.name,
        **vars(effect.estimate),
        "share": effect.share,
    }


def effects_sentence(table: Table | None) -> str:
    """The effects on capacity in one sentence; empty without exactly one design."""
    if table is None or "at" in table.header:
        return ""
    at = table.header.index(EFFECT_COLUMNS[0].label)
    gains = {row[0].text: row[at] for row in table.rows}
    told = [
        text.format(" ".join(filter(None, (gains[name].text, gains[name].detail))))
        for name, text in (
            (_ALONE, "stop-gradient alone {}"),
            (_CLEAN_ALONE, "clean prediction alone {}"),
            (_TOGETHER, "both together {} against naive training"),
            (_ON_TOP, "an EMA target on top of both {}"),
        )
        if name in gains and gains[name].text != "-"
    ]
    intervals = ", with 95 % intervals" if any("[" in text for text in told) else ""
    return f"Change of capacity in bits per token{intervals}: {', '.join(told)}." if told else ""
