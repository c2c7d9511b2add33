"""Tuning of one axis: every variant is reported at its best value, chosen without the reported seed.

Reporting the best row of a sweep over learning rates would be biased. So the axis value for a seed is the one that is
best for the *other* seeds (leave-one-out selection).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dsd_lab.report.groups import range_of
from dsd_lab.report.results import Result, point_name
from dsd_lab.report.statistics.intervals import Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.report import ReportSettings, Tuning

_FALLBACK = "train/reconstruction"
"""Metric for variants without samples: the last record of the reconstruction loss."""


@dataclass(frozen=True)
class Tuned:
    """A variant at one point of the other axes: its metric along the tuned axis."""

    variant: str
    point: dict[str, Any]
    metric: str
    by_value: dict[Any, Estimate | None]
    """The metric at every value of the axis, over seeds."""
    chosen: dict[int, Any]
    """Seed -> chosen value."""
    left_out: bool
    """Whether values were chosen by leave-one-out, which needs two seeds."""

    @property
    def at_edge(self) -> bool:
        """Whether a chosen value is at an end of the axis, so that values beyond it might be better."""
        values = list(self.by_value)
        return len(values) > 2 and any(v in (values[0], values[-1]) for v in self.chosen.values())


def tuned_results(results: list[Result], settings: ReportSettings) -> tuple[list[Result], list[Tuned]]:
    """`tune`, if the spec has `report.tuned` and the results have the axis; else the unchanged results."""
    if settings.tuned is None or not all(settings.tuned.axis in r.point for r in results):
        return results, []
    return tune(results, settings.tuned)


def tune(results: list[Result], settings: Tuning) -> tuple[list[Result], list[Tuned]]:
    """The results at the chosen values, without the axis in their grid points, and how values were chosen.

    A trial that diverged or lacks the metric ranks last; if all lack it, the first value is chosen.
    """
    families: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rest = {k: v for k, v in result.point.items() if k != settings.axis}
        families.setdefault((result.variant, repr(rest)), []).append(result)
    kept, tuned = [], []
    for (variant, _), members in families.items():
        rest = {k: v for k, v in members[0].point.items() if k != settings.axis}
        values = list(dict.fromkeys(r.point[settings.axis] for r in members))
        seeds = list(dict.fromkeys(r.seed for r in members))
        metric = _metric(members, settings)
        sign = -1 if settings.higher_is_better and metric != _FALLBACK else 1
        figures = {(r.point[settings.axis], r.seed): f for r in members if (f := _figure(r, metric)) is not None}
        chosen = {seed: _best(figures, sign, values, [s for s in seeds if s != seed] or seeds) for seed in seeds}
        kept += [replace(r, point=rest) for r in members if r.point[settings.axis] == chosen[r.seed]]
        by_value = {}
        for value in values:
            known = [s for s in seeds if (value, s) in figures]
            by_value[value] = estimate([figures[value, s] for s in known], known, range_of(metric))
        tuned.append(Tuned(variant, rest, metric, by_value, chosen, len(seeds) > 1))
    return kept, tuned


def _metric(members: list[Result], settings: Tuning) -> str:
    names = sorted({n for r in members for n in r.metrics if n.startswith(f"{settings.by}/")})
    return names[0] if names else _FALLBACK


def _figure(result: Result, metric: str) -> float | None:
    value = result.metrics.get(metric, math.nan) if result.finished else math.nan
    return value if math.isfinite(value) else None


def _best(figures: dict[tuple[Any, int], float], sign: int, values: list[Any], seeds: list[int]) -> Any:
    """The value with the lowest mean of sign * metric over these seeds; a missing metric ranks last."""
    return min(values, key=lambda v: float(np.mean([sign * figures.get((v, s), sign * math.inf) for s in seeds])))


def tuning_table(tuned: list[Tuned], settings: Tuning) -> Table | None:
    """One row per variant: the metric at every value of the axis, and the chosen value; None if nothing was tuned."""
    if not tuned:
        return None
    values = list(dict.fromkeys(v for t in tuned for v in t.by_value))
    rows = []
    for t in tuned:
        choice = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in dict.fromkeys(t.chosen.values()))
        edge = "an end of the grid" if t.at_edge else ""
        name = ", ".join(filter(None, [t.variant, point_name(t.point)]))
        cells = [estimate_cell(t.by_value.get(v), 4 if t.metric == _FALLBACK else 2) for v in values]
        rows.append(
            [
                Cell(name),
                Cell("reconstruction" if t.metric == _FALLBACK else t.metric.partition("/")[0]),
                *cells,
                Cell(choice, edge),
            ]
        )
    frame = pd.DataFrame(
        {
            "variant": t.variant,
            **t.point,
            "metric": t.metric,
            settings.axis: value,
            **(vars(found) if found else {}),
            "chosen_for_seeds": " ".join(str(s) for s, v in t.chosen.items() if v == value),
        }
        for t in tuned
        for value, found in t.by_value.items()
    )
    axis = settings.axis.rsplit(".", 1)[-1]
    how = (
        "Each seed is reported at the value that is best for the other seeds (leave-one-out selection). "
        if all(t.left_out for t in tuned)
        else "With one seed the value is chosen and reported on the same trial, which is optimistically biased. "
    )
    note = (
        f"{how}All other tables and figures show the chosen trials only; the cost includes all trials. "
        "A choice at an end of the grid means that the grid may be too narrow."
    )
    header = ["variant", "chosen by", *(f"{axis}={v:g}" if isinstance(v, float) else f"{axis}={v}" for v in values)]
    return Table("tuning", f"Each variant's own best {axis}", [*header, "chosen"], rows, frame, note)
