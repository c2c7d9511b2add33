"""Dependence on network size: verdicts, latents and samples against the number of weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from dsd_lab.home.parameter_count import parameters_in
from dsd_lab.report.figures.style import Look, legend, note_left_out, panels
from dsd_lab.report.groups import MAIN_LATENTS, Column, Group, columns_of, short_labels
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.metrics import FID, STD, fids
from dsd_lab.specs.report import ReportSettings


def weights_of(groups: list[Group]) -> dict[str, int]:
    """Number of weights by group, for groups with a finished trial whose count was recorded."""
    found = {g.name: next((n for r in g.finished if (n := parameters_in(r.folder)) is not None), None) for g in groups}
    return {name: number for name, number in found.items() if number is not None}


def _thousands(number: int) -> str:
    return f"{number / 1e6:.3g} M" if number >= 1e6 else f"{number / 1e3:.3g} k"


def _columns(groups: list[Group]) -> list[Column]:
    columns = columns_of([r for g in groups for r in g.results])
    first = fids(c.name for c in columns)[:1]
    return [*MAIN_LATENTS, *(c for c in columns if c.name in first)]


def scaling_table(groups: list[Group], looks: dict[str, str]) -> Table | None:
    """One row per variant and size, ascending; None if all networks have one size."""
    weights = weights_of(groups)
    if len(set(weights.values())) < 2:
        return None
    columns = _columns(groups)
    order = {v: i for i, v in enumerate(dict.fromkeys(g.variant for g in groups))}
    members = sorted((g for g in groups if g.name in weights), key=lambda g: (order[g.variant], weights[g.name]))
    rows, numbers = [], []
    for group in members:
        verdicts = "\n".join(f"{v} {n}/{group.with_verdict}" for v, n in group.counts.items())
        cells = [estimate_cell(group.estimates.get(c.name), c.digits) for c in columns]
        rows.append([Cell(group.variant, group.point_name), Cell(f"{weights[group.name]:,}"), Cell(verdicts or "-"), *cells])  # fmt: skip
        numbers += [
            {"variant": group.variant, **group.point, "parameters": weights[group.name], "metric": c.name, **vars(found)}
            for c in columns
            if (found := group.estimates.get(c.name)) is not None
        ]  # fmt: skip
    header = ["variant", "weights", "verdicts", *short_labels(columns).values()]
    note = "Weights: number of weights of the deployed network."
    if len({r.steps for g in members for r in g.finished}) == 1:
        note += " All trials train for the same number of steps."
    dots = [looks[g.variant] for g in members]
    return Table("scaling", "Dependence on network size", header, rows, pd.DataFrame(numbers), note, dots)


def scaling(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Means over seeds against the number of weights; bars: smallest to largest seed. None if all sizes are equal."""
    weights = weights_of(groups)
    if len(set(weights.values())) < 2:
        return None
    columns = _columns(groups)
    labels, sizes = short_labels(columns), sorted(set(weights.values()))
    figure, axes = panels(len(columns), 2.6, 2, sharex=True)
    by_variant: dict[str, list[Group]] = {}
    for group in sorted((g for g in groups if g.name in weights), key=lambda g: weights[g.name]):
        by_variant.setdefault(group.variant, []).append(group)
    for part, column in zip(axes, columns, strict=True):
        for variant in dict.fromkeys(g.variant for g in groups):
            points = []
            for group in by_variant.get(variant, []):
                if values := list(group.values(column.name, settings).values()):
                    points.append((weights[group.name], np.mean(values), np.min(values), np.max(values)))
            if points:
                x, mean, low, high = np.array(points, dtype=float).T
                look = looks[variant]
                part.errorbar(x, mean, [mean - low, high - mean], color=look.colour, marker=look.marker, markersize=4, capsize=2, label=variant, **look.line)  # fmt: skip
        part.set(xscale="log", ylabel=labels[column.name])
        part.xaxis.set_minor_locator(NullLocator())
        part.set_xticks(sizes, [_thousands(n) for n in sizes])
        if column.name == STD.recorded or column.name.startswith(FID):
            part.set_yscale("log")
        else:
            part.set_ylim(0, None)
    figure.supxlabel("number of weights", fontsize=9)
    note_left_out(figure, 1, len(fids({n for g in groups for n in g.estimates})), "FIDs; the table of samples has all")
    legend(figure, axes)
    return figure
