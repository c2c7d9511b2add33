"""Figure of paired differences: every variant minus the reference, by seed, with the interval of the mean."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_lab.report.figures.style import WIDTH, Look, note_left_out, point_title
from dsd_lab.report.groups import CAPACITY, Column, Group, columns_of, short_labels
from dsd_lab.report.statistics.comparisons import Comparison, compare, paired_differences
from dsd_lab.specs.metrics import BESIDE_SAMPLES
from dsd_lab.specs.report import ReportSettings

_MAX_ROWS = 40
"""Maximum number of rows; the table has all."""
_SYMLOG_FROM = 20.0
"""Ratio of the largest to the median difference above which the axis is symmetric logarithmic."""
_SHOWN = (CAPACITY.name, *BESIDE_SAMPLES)


def differences(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """One row per group, one panel per quantity; None if no two variants share two seeds."""
    columns = _columns(groups)
    found = [c for c in compare(groups, columns, settings) if c.paired.difference.n > 1]
    if not found:
        return None
    by_row: dict[str, dict[str, Comparison]] = {}
    for comparison in found:
        by_row.setdefault(comparison.group.name, {})[comparison.column.name] = comparison
    rows = dict(list(by_row.items())[:_MAX_ROWS])
    columns = [c for c in columns if any(c.name in row for row in rows.values())]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(rows)), layout="constrained")
    labels = short_labels(columns)
    axes = list(figure.subplots(1, len(columns), squeeze=False, sharey=True).flat)
    for part, column in zip(axes, columns, strict=True):
        drawn = {i: row[column.name] for i, row in enumerate(rows.values()) if column.name in row}
        _draw(part, drawn, looks, settings)
        part.set_title(labels[column.name])
    axes[0].set_yticks(range(len(rows)), [point_title(name, 60) for name in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(f"difference from {found[0].reference.variant}", fontsize=9)
    note_left_out(figure, len(rows), len(by_row), "rows of the table")
    return figure


def _columns(groups: list[Group]) -> list[Column]:
    """Capacity, and the first measurement of FID and of label accuracy."""
    there = columns_of([r for g in groups for r in g.results])
    firsts = (next((c for c in there if c.name.startswith(prefix)), None) for prefix in _SHOWN)
    return [c for c in firsts if c is not None]


def _draw(axes: Axes, rows: dict[int, Comparison], looks: dict[str, Look], settings: ReportSettings) -> None:
    """Bar: 95 % interval of the mean; large mark: mean; small marks: seeds."""
    every, bounds = list[float](), list[float]()
    for place, comparison in rows.items():
        look, mean = looks[comparison.group.variant], comparison.paired.difference
        seeds = paired_differences(comparison.group, comparison.reference, comparison.column, settings).values()
        axes.plot(list(seeds), [place] * len(seeds), ".", color=look.colour, alpha=0.45, markersize=4)
        if mean.ci_low is not None and mean.ci_high is not None:
            axes.plot([mean.ci_low, mean.ci_high], [place, place], "-", color=look.colour, linewidth=1.5)
            bounds += [mean.ci_low, mean.ci_high]
        axes.plot([mean.mean], [place], look.marker, color=look.colour, markersize=5)
        every += seeds
    axes.axvline(0, color="black", linewidth=0.8, zorder=1)
    sizes, span = np.abs(every), float(np.ptp([*every, 0.0]))
    if sizes.max() > _SYMLOG_FROM * np.median(sizes) > 0:
        axes.set_xscale("symlog", linthresh=float(np.median(sizes)))
        return
    axes.locator_params(axis="x", nbins=4)
    if span > 0:  # cut long intervals (two seeds), which would hide the differences
        low, high = min([*every, 0.0]), max([*every, 0.0])
        axes.set_xlim(
            max(min([low, *bounds]), low - span / 2) - span / 20, min(max([high, *bounds]), high + span / 2) + span / 20
        )
