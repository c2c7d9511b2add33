"""Figure of theory against measurement: derivatives over training and per direction, and rank gaps against changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_lab.report.figures.style import X_LABELS, Look, band, legend, narrow_title, note_points, panels, shown_points
from dsd_lab.report.groups import Group
from dsd_lab.report.statistics.agreement import ScaleRecord, gap_record, scale_record
from dsd_lab.specs.report import ReportSettings, XAxis

_LINEAR = 0.01
"""Derivatives below this are on a linear scale (symmetric logarithmic axis)."""
_TICKS = (-100, -1, -_LINEAR, 0, _LINEAR, 1, 100)
_FEW_TICKS = tuple(t for t in _TICKS if abs(t) != _LINEAR)
"""Ticks of narrow panels, where labels next to 0 would overlap it."""
_GROWS, _SHRINKS = "#56B4E9", "#D55E00"


def theory(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Three panels per grid point; None if no trial has measured a derivative."""
    points = shown_points(groups)
    members = [g for shown in points.values() for g in shown]
    records = {g.name: _records(g, settings.x) for g in members}
    if not any(records.values()):
        return None
    columns = len(points)
    if columns == 1:
        figure, axes = panels(3, 3.1, 3)
        rows = [[a] for a in axes]
    else:
        figure, axes = panels(3 * columns, 2.0, columns, sharey="row")
        figure.set_figwidth(max(8.4, 1.9 * columns + 1.6))
        rows = [axes[i * columns : (i + 1) * columns] for i in range(3)]
    for column, (point, shown) in enumerate(points.items()):
        for group in shown:
            look, found = looks[group.variant], records[group.name]
            _over_training(rows[0][column], found, look, group.variant)
            _directions(rows[1][column], found, look, settings.probes)
            _gaps(rows[2][column], group, look)
        for row in rows[:2]:
            row[column].set_yscale("symlog", linthresh=_LINEAR)
            row[column].axhline(0, color="0.4", linewidth=0.8)
        _agreement_regions(rows[1][column], _TICKS if columns <= 2 else _FEW_TICKS)
        rows[2][column].axhline(0, color="0.4", linewidth=0.8)
        rows[2][column].axvline(0, color="0.4", linewidth=0.8)
        if columns > 1:
            rows[0][column].set_title(narrow_title(point))
        for row, label in zip(
            rows, (X_LABELS[settings.x], "closed form, one direction", "rank gap at a probe"), strict=True
        ):
            row[column].set_xlabel(label)
    for row, label in zip(
        rows,
        ("d loss / d scale", "measured, one direction", "change of rank after the next"),
        strict=True,
    ):
        row[0].set_ylabel(label)
    note_points(figure, groups)
    legend(figure, axes)
    return figure


def _records(group: Group, x: XAxis) -> list[ScaleRecord]:
    found = ((t, scale_record(t)) for t in group.finished)
    return [replace(record, steps=trial.along(record.steps, x)) for trial, record in found if record is not None]


def _over_training(axes: Axes, records: list[ScaleRecord], look: Look, label: str) -> None:
    band(axes, [(r.steps, r.measured.mean(1)) for r in records], look, label)
    if records and all(np.array_equal(r.steps, records[0].steps) for r in records):
        mean = np.mean([r.predicted.mean(1) for r in records], axis=0)
        axes.plot(records[0].steps, mean, color=look.colour, linestyle=(0, (1, 1.5)), linewidth=1.6)


def _directions(axes: Axes, records: list[ScaleRecord], look: Look, probes: int) -> None:
    for record in records:
        alive = record.alive[-1]
        x, y = (np.median(part[-probes:], axis=0)[alive] for part in (record.predicted, record.measured))
        axes.scatter(x, y, s=16, color=look.colour, marker=look.marker, edgecolor="white", linewidth=0.3, zorder=3)
    axes.set_xscale("symlog", linthresh=_LINEAR)


def _agreement_regions(axes: Axes, ticks: tuple[float, ...]) -> None:
    """Shade the quadrants in which signs agree, and draw the diagonal."""
    low, high = (f(f(axes.get_xlim()), f(axes.get_ylim())) for f in (min, max))
    low, high = min(low, -_LINEAR), max(high, _LINEAR)
    axes.fill_between([0, high], 0, high, color=_SHRINKS, alpha=0.08, linewidth=0, zorder=0)
    axes.fill_between([low, 0], low, 0, color=_GROWS, alpha=0.12, linewidth=0, zorder=0)
    axes.plot([low, high], [low, high], color="0.5", linewidth=0.8, linestyle=":")
    axes.axvline(0, color="0.4", linewidth=0.8)
    shown = [t for t in ticks if low <= t <= high]
    axes.set_xticks(shown, [f"{t:g}" for t in shown])
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.text(0.97, 0.98, "both shrink", transform=axes.transAxes, ha="right", va="top", fontsize=7, color="0.35")
    axes.text(0.12, 0.02, "both grow", transform=axes.transAxes, ha="left", va="bottom", fontsize=7, color="0.35")


def _gaps(axes: Axes, group: Group, look: Look) -> None:
    for result in group.finished:
        found = gap_record(result)
        if found is not None:
            axes.scatter(
                *found, s=9, color=look.colour, marker=look.marker, alpha=0.6, linewidth=0, label=group.variant
            )
