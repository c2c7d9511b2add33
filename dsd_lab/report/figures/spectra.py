"""Figures of spectra: at the end of training, as heat maps over training, and the rank gap by time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.figures.style import (
    X_LABELS,
    Look,
    add_note,
    legend,
    narrow_title,
    note_points,
    panels,
    point_title,
    shown_points,
)
from dsd_lab.report.groups import Group
from dsd_lab.report.tables.main import gap_names
from dsd_lab.specs.report import ReportSettings, XAxis

_ZERO = 1e-10
"""Smaller eigenvalues belong to directions removed by the normaliser, and are left out."""
_MAX_CELLS = 160
"""Maximum number of probes in a heat map."""


def spectra(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Eigenvalues of the latents' covariance at the end of training: tokens, then images."""
    points = shown_points(groups)
    if len(points) == 1:
        figure, axes = panels(2, 3.0, 2)
        rows = [[axes[0]], [axes[1]]]
    else:
        figure, axes = panels(2 * len(points), 2.0, len(points), sharey=True)
        figure.set_figwidth(max(8.4, 1.7 * len(points) + 1.6))
        rows = [axes[: len(points)], axes[len(points) :]]
    drawn = False
    for row, level in zip(rows, ("token", "image"), strict=True):
        for part, members in zip(row, points.values(), strict=True):
            for group in members:
                found = [r.history.spectrum(f"spectrum/{level}")[1] for r in group.finished]
                finals = [s[-1] for s in found if len(s)]
                if finals:
                    drawn = True
                    _spectrum(part, np.stack(finals), looks[group.variant], group.variant)
            part.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
            part.set(yscale="log", xlabel=f"eigenvalue index, {level}s")
        row[0].set_ylabel("covariance eigenvalue")
    if not drawn:
        return None
    if len(points) > 1:
        for part, point in zip(rows[0], points, strict=True):
            part.set_title(narrow_title(point))
    note_points(figure, groups)
    legend(figure, axes)
    return figure


def _spectrum(axes, finals: Floats, look: Look, label: str) -> None:  # type: ignore[no-untyped-def]
    values = np.where(finals > _ZERO, finals, np.nan)
    kept = ~np.isnan(values).all(axis=0)
    values, order = values[:, kept], (np.arange(finals.shape[1]) + 1)[kept]
    axes.plot(order, np.nanmean(values, axis=0), color=look.colour, label=label, **look.line)
    axes.fill_between(order, np.nanmin(values, 0), np.nanmax(values, 0), color=look.colour, alpha=0.18, linewidth=0)


def spectrum_maps(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Heat map of the token spectrum over training for every group, geometric mean over seeds."""
    points = shown_points(groups)
    maps = {
        g.name: found
        for members in points.values()
        for g in members
        if (found := _mean_spectrum(g, settings.x)) is not None
    }
    if not maps:
        return None
    variants = list(dict.fromkeys(g.variant for members in points.values() for g in members if g.name in maps))
    wrapped = len(points) == 1
    count, columns = (len(variants), min(4, len(variants))) if wrapped else (len(points) * len(variants), len(variants))
    figure, axes = panels(count, 1.9 if wrapped else 1.25, columns, sharey=True, sharex=True)
    if not wrapped:
        figure.set_figwidth(max(8.4, 1.25 * columns + 1.5))
    values = np.concatenate([m[1].ravel() for m in maps.values()])
    norm = LogNorm(max(float(np.nanmin(values)), 1e-4), max(float(np.nanmax(values)), 1e-3))
    image = None
    for row, (point, members) in enumerate(points.items()):
        by_variant = {g.variant: g for g in members}
        for column, variant in enumerate(variants):
            part = axes[column if wrapped else row * columns + column]
            found = maps.get(by_variant[variant].name) if variant in by_variant else None
            if found is not None:
                steps, table = found
                # `pcolorfast` embeds an image, which is small and fast. Cells are centred on their probes.
                order = np.arange(table.shape[1] + 1) + 0.5
                image = part.pcolorfast(_edges(steps), order, table.T, norm=norm, cmap="viridis")
                part.set_ylim(table.shape[1] + 0.5, 0.5)
            part.grid(visible=False)
            if wrapped or row == 0:
                part.set_title(variant)
            if not wrapped and column == 0:
                part.set_ylabel(narrow_title(point), fontsize=6.5)
    figure.supxlabel(X_LABELS[settings.x], fontsize=9)
    figure.supylabel("eigenvalue index, tokens", fontsize=9)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, label="covariance eigenvalue", shrink=0.9, extend="min")
        bar.ax.axhline(1.0, color="white", linewidth=1.2)
    if any(len(steps) == _MAX_CELLS for steps, _ in maps.values()):
        add_note(figure, f"At most {_MAX_CELLS} probes, evenly spread.")
    note_points(figure, groups)
    return figure


def _edges(centres: Floats) -> Floats:
    """Borders [n + 1] half-way between n centres."""
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _mean_spectrum(group: Group, x: XAxis) -> tuple[NDArray[Any], Floats] | None:
    spectra = ((r, *r.history.spectrum("spectrum/token")) for r in group.finished)
    found = [(r.along(steps, x), table) for r, steps, table in spectra if len(steps) > 1]
    found = [(at, table) for at, table in found if np.isfinite(at).all()]
    if not found:
        return None
    steps = found[0][0]
    for other, _ in found[1:]:
        steps = np.intersect1d(steps, other)
    if len(steps) < 2:
        return None
    kept = steps[np.unique(np.linspace(0, len(steps) - 1, _MAX_CELLS).round().astype(int))]
    tables = [t[np.searchsorted(s, kept)] for s, t in found]
    return kept, np.exp(np.mean(np.log(np.maximum(np.stack(tables), _ZERO)), axis=0))


def rank_gap(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Rank of the clean target minus rank of the clean prediction, by time."""
    points = shown_points(groups)
    figure, axes = panels(len(points), 2.4 if len(points) > 1 else 3.0, 3, sharex=True, sharey=True)
    drawn = False
    for part, (point, members) in zip(axes, points.items(), strict=True):
        for group in members:
            names = gap_names(group)
            rows = [[r.last_probes(n, settings.probes) for n in names] for r in group.finished]
            table = np.array([row for row in rows if row and None not in row], dtype=float)
            if not len(table):
                continue
            drawn, look = True, looks[group.variant]
            centres = (np.arange(len(names)) + 0.5) / len(names)
            part.plot(
                centres,
                table.mean(0),
                marker=look.marker,
                markersize=3.5,
                color=look.colour,
                label=group.variant,
                **look.line,
            )
            part.fill_between(centres, table.min(0), table.max(0), color=look.colour, alpha=0.15, linewidth=0)
        part.axhline(0, color="0.4", linewidth=0.8)
        part.set(xlim=(0, 1), title=point_title(point))
    if not drawn:
        return None
    figure.supxlabel("time t (0: noise, 1: clean)", fontsize=9)
    figure.supylabel("rank gap: target minus prediction", fontsize=9)
    note_points(figure, groups)
    legend(figure, axes)
    return figure
