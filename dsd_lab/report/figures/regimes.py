"""Map of the paired difference from the reference over two axes of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dsd_lab.report.figures.style import Look, panels, point_title
from dsd_lab.report.groups import Column, Group, columns_of, short_labels
from dsd_lab.report.results import point_name
from dsd_lab.report.statistics.comparisons import Comparison, by_chance, compare, comparison_row
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell, shown
from dsd_lab.specs.report import Mapping, ReportSettings

_LINEAR = 0.05
"""Share of the largest difference below which colours are linear: differences span decades."""


@dataclass(frozen=True)
class Regimes:
    """The differences of a sweep over two axes, and the axes' values in the spec's order."""

    mapping: Mapping
    column: Column
    """The quantity that was compared: log10 of the std where the spec asks for the std."""
    xs: list[Any]
    ys: list[Any]
    panels: dict[str, dict[tuple[Any, Any], Comparison]]
    """By variant and the point on the other axes; by (x, y)."""

    def wins(self, found: Comparison) -> int:
        """1 where the variant is better and its interval excludes 0, -1 where it is worse, 0 if the interval contains 0."""
        if not found.paired.difference.excludes_zero:
            return 0
        return 1 if (found.paired.difference.mean > 0) == self.mapping.higher_is_better else -1


def _fewer(found: Comparison) -> str:
    """`n 2` where fewer seeds are compared than were planned, as with diverged trials; else empty."""
    n = found.paired.difference.n
    return f"n {n}" if n < max(len(found.group.results), len(found.reference.results)) else ""


def regimes(groups: list[Group], settings: ReportSettings) -> Regimes | None:
    """What the map shows; None if the spec asks for no map or nothing can be compared."""
    mapping = settings.map
    columns = columns_of([r for g in groups for r in g.results])
    if mapping is None:
        return None
    column = next((c for c in columns if c.name == mapping.by or c.name.startswith(f"{mapping.by}/")), None)
    if column is None or not all(axis in g.point for g in groups for axis in (mapping.x, mapping.y)):
        return None
    found: dict[str, dict[tuple[Any, Any], Comparison]] = {}
    for comparison in compare(groups, [column], settings):
        point = comparison.group.point
        rest = {k: v for k, v in point.items() if k not in (mapping.x, mapping.y)}
        name = ", ".join(filter(None, (comparison.group.variant, point_name(rest))))
        found.setdefault(name, {})[point[mapping.x], point[mapping.y]] = comparison
    xs, ys = (list(dict.fromkeys(g.point[axis] for g in groups)) for axis in (mapping.x, mapping.y))
    found = dict(sorted(found.items(), key=lambda item: next(iter(item[1].values())).group.variant == settings.control))
    if not found:
        return None
    compared = next(iter(next(iter(found.values())).values())).column
    return Regimes(mapping, compared, xs, ys, found)


def regime_map(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """One panel per variant; a framed cell's interval excludes 0. None as for `regimes`."""
    found = regimes(groups, settings)
    if found is None:
        return None
    figure, axes = panels(len(found.panels), 0.55 + 0.42 * len(found.ys), 2 if len(found.xs) > 4 else 3, sharex=True, sharey=True)  # fmt: skip
    sizes = [abs(c.paired.difference.mean) for cells in found.panels.values() for c in cells.values()]
    most = max(sizes) or 1.0
    norm = SymLogNorm(_LINEAR * most, vmin=-most, vmax=most)
    for part, (name, cells) in zip(axes, found.panels.items(), strict=True):
        picture = np.full((len(found.ys), len(found.xs)), np.nan)
        part.grid(False)
        for (x, y), comparison in cells.items():
            column, row = found.xs.index(x), found.ys.index(y)
            mean, framed = comparison.paired.difference.mean, found.wins(comparison) != 0
            text = "\n".join(filter(None, (shown(mean, found.column.digits, signed=True), _fewer(comparison))))
            picture[row, column] = mean
            dark = abs(float(norm(mean)) - 0.5) > 0.3
            part.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black", weight="bold" if framed else "normal")  # fmt: skip
            if framed:
                part.add_patch(Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, linewidth=1.8))
        colours = "RdBu" if found.mapping.higher_is_better else "RdBu_r"
        image = part.imshow(picture, norm=norm, cmap=colours, origin="lower", aspect="auto")
        part.set_xticks(range(len(found.xs)), [str(v) for v in found.xs])
        part.set_yticks(range(len(found.ys)), [str(v) for v in found.ys])
        part.set_title(point_title(name))
    reference = next(iter(next(iter(found.panels.values())).values())).reference.variant
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(f"{short_labels([found.column])[found.column.name]} minus {reference}", fontsize=8)
    figure.supxlabel(found.mapping.x, fontsize=9)
    figure.supylabel(found.mapping.y, fontsize=9)
    return figure


def regime_table(groups: list[Group], settings: ReportSettings) -> Table | None:
    """One row per variant and value of y, one column per value of x; None as for `regimes`."""
    found = regimes(groups, settings)
    if found is None:
        return None
    rows, counted = [], []
    tones = {1: "good", -1: "bad", 0: ""}
    for name, cells in found.panels.items():
        for y in reversed(found.ys):
            row = [Cell(name), Cell(str(y))]
            for x in found.xs:
                comparison = cells.get((x, y))
                if comparison is None:
                    row.append(Cell("-"))
                    continue
                cell = estimate_cell(comparison.paired.difference, found.column.digits, True, _fewer(comparison))
                row.append(Cell(cell.text, cell.detail, tones[found.wins(comparison)]))
            rows.append(row)
        counts = [found.wins(c) for c in cells.values()]
        counted.append(f"{name}: better in {counts.count(1)} of {len(counts)} cells, worse in {counts.count(-1)}.")
    every = [c for cells in found.panels.values() for c in cells.values()]
    note = (
        f"{found.column.label}: mean difference from {every[0].reference.variant}, paired by seed, with 95 % intervals. n: pairs of seeds, "
        f"where fewer than planned. Better and worse: the interval excludes 0. {' '.join(counted)} {by_chance([c.paired.difference for c in every])}"
    )
    header = ["variant", found.mapping.y, *(f"{found.mapping.x.rsplit('.', 1)[-1]}={x}" for x in found.xs)]
    frame = pd.DataFrame([comparison_row(c) | {"shown": found.wins(c)} for c in every])
    return Table("map", "Where a variant wins", header, rows, frame, note.strip())
