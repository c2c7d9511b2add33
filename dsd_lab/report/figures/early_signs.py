"""Slow collapse: the margin to the verdict's threshold over training, and the early signs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dsd_lab.report.figures.style import X_LABELS, Look, band, legend, note_left_out, panels
from dsd_lab.report.groups import Group, points_of
from dsd_lab.report.statistics.early_signs import SIGNS, courses
from dsd_lab.specs.report import ReportSettings


def early_signs(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """One panel for the margin, one per sign; None without a control. Of a grid, only the first point."""
    first = [g for g in groups if g.point == groups[0].point] if groups else []
    found = courses(first, settings)
    if not found:
        return None
    shown = [g for g in first if g.name in found]
    signs = {name: sign for name, sign in SIGNS.items() if any(name in c.known for made in found.values() for c in made.values())}  # fmt: skip
    figure, axes = panels(1 + len(signs), 1.75, 1, sharex=True)
    figure.set_figwidth(8.4)
    for group in shown:
        look, made = looks[group.variant], found[group.name]
        results = {r.seed: r for r in group.described}
        band(
            axes[0], [(results[s].along(c.steps, settings.x), c.margins) for s, c in made.items()], look, group.variant
        )
        crossings = {seed: c.crossed_at for seed, c in made.items() if c.crossed_at is not None}
        places = [results[seed].along(np.array([at]), settings.x)[0] for seed, at in crossings.items()]
        axes[0].plot(places, [1.0] * len(places), "v", color=look.colour, markersize=6)
        for part, sign in zip(axes[1:], signs.values(), strict=True):
            series = [
                (r.along(steps[1:], settings.x), values[1:]) for r in results.values() for steps, values in [sign(r)]
            ]
            band(part, series, look, group.variant)
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[0].set(yscale="log", ylabel="margin over\nthe threshold")
    for part, name in zip(axes[1:], signs, strict=True):
        part.axhline(0, color="black", linewidth=0.8)
        part.set_ylabel(name.replace(", ", ",\n").replace(" below 0", ",\ntimes -1").replace(" above 0", ""))
        part.set_yscale("symlog", linthresh=0.01 if "gradient" in name else 0.1)
    figure.supxlabel(X_LABELS[settings.x], fontsize=9)
    note_left_out(figure, 1, len(points_of(groups)), "grid points; the table has all")
    legend(figure, axes)
    return figure
