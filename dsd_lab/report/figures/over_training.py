"""Samples over training: what evaluations of kept checkpoints measured, beside the trained weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dsd_lab.evaluation.metric_names import OVER_TRAINING
from dsd_lab.home.history import Floats
from dsd_lab.report.figures.style import (
    X_LABELS,
    Look,
    band,
    legend,
    narrow_title,
    note_left_out,
    note_points,
    panels,
    shown_points,
)
from dsd_lab.report.groups import Column, Group, columns_of, short_labels
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import estimate
from dsd_lab.report.tables.measured_how import measured_how
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.metrics import FID
from dsd_lab.specs.report import ReportSettings

_MAX_ROWS = 4
"""Quantities of the figure; the table has all."""


def values_over_training(result: Result, metric: str) -> dict[int, float]:
    """Values of a metric by step: of kept checkpoints that were evaluated, and at the end of the trained weights."""
    found = {}
    for evaluation, metrics in result.evaluations:
        if isinstance(evaluation.checkpoint, int) and f"{OVER_TRAINING}{metric}" in metrics:
            found[evaluation.checkpoint] = metrics[f"{OVER_TRAINING}{metric}"]
    if found and metric in result.metrics:
        found[result.step] = result.metrics[metric]
    return dict(sorted(found.items()))


def _columns(groups: list[Group]) -> list[Column]:
    """Columns with a value of a kept checkpoint, those of distances first."""
    results = [r for g in groups for r in g.results]
    named = {name for r in results for _, metrics in r.evaluations for name in metrics}
    early = {name.removeprefix(OVER_TRAINING) for name in named if name.startswith(OVER_TRAINING)}
    columns = columns_of(results, also=early)
    return sorted((c for c in columns if c.name in early), key=lambda c: not c.name.startswith(FID))


def over_training(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Evaluations against the x axis, one row a quantity; None where no kept checkpoint was evaluated."""
    every, points = _columns(groups), shown_points(groups)
    columns = every[:_MAX_ROWS]
    if not columns:
        return None
    labels = short_labels(columns)
    figure, axes = panels(len(columns) * len(points), 2.4, len(points) if len(points) > 1 else 2, sharex=True)
    rows = [axes[i * len(points) : (i + 1) * len(points)] for i in range(len(columns))]
    for row, column in zip(rows, columns, strict=True):
        for part, (point, members) in zip(row, points.items(), strict=True):
            for group in members:
                curves: list[tuple[NDArray[np.float64], Floats]] = []
                for result in group.finished:
                    if values := values_over_training(result, column.name):
                        at = np.asarray(result.along(np.array([*values], dtype=float), settings.x))
                        curves.append((at, np.array([*values.values()])))
                band(part, curves, looks[group.variant], group.variant)
            if row is rows[0] and len(points) > 1:
                part.set_title(narrow_title(point))
            if column.name.startswith(FID):
                part.set_yscale("log")
        row[0].set_ylabel(labels[column.name])
    figure.supxlabel(X_LABELS[settings.x], fontsize=9)
    note_left_out(figure, len(columns), len(every), "quantities; the table has all")
    note_points(figure, groups)
    legend(figure, axes)
    return figure


def over_training_table(groups: list[Group], looks: dict[str, str]) -> Table | None:
    """One row a group and step; None where no kept checkpoint was evaluated."""
    columns = _columns(groups)
    rows, numbers, dots = [], [], []
    for group in groups:
        values = {c.name: {r.seed: values_over_training(r, c.name) for r in group.finished} for c in columns}
        for step in sorted({step for seeds in values.values() for each in seeds.values() for step in each}):
            cells = []
            for column in columns:
                at = {seed: each[step] for seed, each in values[column.name].items() if step in each}
                found = estimate(list(at.values()), at, column.within) if at else None
                cells.append(estimate_cell(found, column.digits))
                if found is not None:
                    numbers.append({"variant": group.variant, **group.point, "step": step, "metric": column.name, **vars(found)})  # fmt: skip
            rows.append([Cell(group.name), Cell(f"{step:,}"), *cells])
            dots.append(looks[group.variant])
    if not rows:
        return None
    labels = short_labels(columns)
    how = measured_how(columns, labels)
    header = ["variant", "step", *labels.values()]
    return Table(
        "over_training", "Over training", header, rows, pd.DataFrame(numbers), how, dots, folded=len(rows) > 20
    )
