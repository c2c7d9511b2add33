"""Figures of the latents' scale and rank: map of verdicts, curves over training, time to collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.figures.style import (
    X_LABELS,
    Look,
    band,
    legend,
    narrow_title,
    note_points,
    panels,
    point_title,
    shown_points,
)
from dsd_lab.report.groups import Group
from dsd_lab.report.own_metrics import own_latent
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.verdicts import cell_of, controls_of, latent_state
from dsd_lab.specs.metrics import LATENT, STD
from dsd_lab.specs.report import ReportSettings, XAxis

_QUANTITIES: tuple[tuple[str, str, bool, Callable[[Floats], Floats] | None], ...] = (
    ("latent/variance", STD.heading, STD.log_scale, np.sqrt),
    *((metric.recorded, metric.heading, metric.log_scale, None) for metric in LATENT if metric.table),
)
_SURVIVAL_FROM = 6


def verdict_map(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Scale and rank of every trial with a verdict, relative to its control or to bounds, with the verdicts' regions."""
    places = _places(groups, settings)
    if not any(places.values()):
        return None
    relative = any(g.variant == settings.control for g in groups)
    shrunk, runaway = (settings.shrunk, settings.runaway) if relative else (settings.shrunk_std, settings.runaway_std)
    rank = settings.rank if relative else settings.rank_bound
    points = shown_points(groups)
    figure, axes = panels(len(points), 2.9 if len(points) > 1 else 3.7, 3, sharex=True, sharey=True)
    scales = [x for shown in places.values() for x, _ in shown]
    low, high = min([*scales, shrunk / 3]) / 1.6, max([*scales, runaway]) * 1.6
    top = max([*(y for shown in places.values() for _, y in shown), 1.0]) * 1.14
    for part, (point, members) in zip(axes, points.items(), strict=True):
        _regions(part, low, high, top, (shrunk, runaway, rank))
        for group in members:
            look, shown = looks[group.variant], places[group.name]
            if shown:
                x, y = zip(*shown, strict=True)
                part.scatter(x, y, s=42, color=look.colour, marker=look.marker, label=group.variant, edgecolor="white", linewidth=0.6, zorder=3)  # fmt: skip
        if relative:
            # A ring, so that a trial equal to its control is visible inside it.
            part.plot(
                1, 1, "o", color="#444444", fillstyle="none", markersize=12, label="control", linestyle="", zorder=4
            )
        part.set(xscale="log", xlim=(low, high), ylim=(0, top), title=point_title(point))
        part.xaxis.set_minor_formatter(NullFormatter())
    against = "relative to the control" if relative else ""
    figure.supxlabel(f"latent std {against}".strip(), fontsize=9)
    kind = against or "as a fraction of its bound"
    figure.supylabel(f"effective rank {kind}\n(the lower of tokens and images)", fontsize=9, multialignment="center")
    note_points(figure, groups)
    legend(figure, axes)
    return figure


def _places(groups: list[Group], settings: ReportSettings) -> dict[str, list[tuple[float, float]]]:
    """(scale, rank) of the trials of every group, without the control's."""
    controls = controls_of([r for g in groups for r in g.results], settings)
    relative = any(g.variant == settings.control for g in groups)
    places: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        shown = places.setdefault(group.name, [])
        if group.variant == settings.control:
            continue
        for result in group.results:
            state = latent_state(result, settings.probes) if group.verdicts[result.seed] else None
            if state is None:
                continue
            if not relative:
                rank = min(state.rank_token / state.token_bound, state.rank_image / state.image_bound)
                shown.append((max(state.std, 1e-4), rank))
                continue
            own = controls.get(cell_of(result))
            control = None if own is None else latent_state(own, settings.probes)
            if control is None or min(control.std, control.rank_token, control.rank_image) == 0:
                continue
            rank = min(state.rank_token / control.rank_token, state.rank_image / control.rank_image)
            shown.append((max(state.std / control.std, 1e-4), rank))
    return places


def _regions(axes: Axes, low: float, high: float, top: float, bounds: tuple[float, float, float]) -> None:
    shrunk, runaway, rank = bounds
    axes.axvspan(low, shrunk, color="#d62728", alpha=0.07, zorder=0)
    axes.axvspan(runaway, high, color="#9467bd", alpha=0.09, zorder=0)
    axes.fill_between([shrunk, runaway], 0, rank, color="#ff7f0e", alpha=0.10, zorder=0)
    for left, right, y, text in (
        (low, shrunk, top, "shrunk"),
        (shrunk, runaway, top, "healthy"),
        (shrunk, runaway, rank, "rank-collapsed"),
        (runaway, high, top, "runaway"),
    ):
        axes.text(math.sqrt(left * right), y * 0.985, text, ha="center", va="top", fontsize=7, color="0.35")


def curves(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Scale, ranks and capacity over training; with a grid, one row per quantity."""
    if not any(len(r.history.series("latent/variance")[0]) for g in groups for r in g.results):
        return None
    points = shown_points(groups)
    own = [(m.recorded, m.heading, False, None) for m in own_latent([r for g in groups for r in g.results])]
    quantities = (*_QUANTITIES, *own)
    if len(points) == 1:
        figure, axes = panels(len(quantities), 2.6, 2, sharex=True)
        rows = [[a] for a in axes]
    else:
        columns = len(points)
        figure, axes = panels(len(quantities) * columns, 1.75, columns, sharex=True, sharey="row")
        figure.set_figwidth(max(8.4, 1.7 * columns + 1.6))
        rows = [axes[i * columns : (i + 1) * columns] for i in range(len(quantities))]
    for row, (name, label, logarithmic, transform) in zip(rows, quantities, strict=True):
        for part, members in zip(row, points.values(), strict=True):
            for group in members:
                look = looks[group.variant]
                band(part, _series(group.finished, name, transform, settings.x), look, group.variant)
                entry = None if group.finished else group.variant  # one entry in the legend
                for steps, values in _series([r for r in group.results if not r.finished], name, transform, settings.x):
                    part.plot(steps, values, color=look.colour, linewidth=0.6, label=entry)
            part.set(
                **(
                    {"yscale": "log"}
                    if logarithmic
                    else {}
                    if (name, label, logarithmic, transform) in own
                    else {"ylim": (0, None)}
                )
            )
        row[0].set_ylabel(label)
    if len(points) > 1:
        for part, point in zip(rows[0], points, strict=True):
            part.set_title(narrow_title(point))
    figure.supxlabel(X_LABELS[settings.x], fontsize=9)
    note_points(figure, groups)
    legend(figure, axes)
    return figure


def _series(
    results: list[Result], name: str, transform: Callable[[Floats], Floats] | None, x: XAxis
) -> list[tuple[NDArray[Any], Floats]]:
    """x values and metric values of the probed trials."""
    series = ((r, *r.history.series(name)) for r in results)
    found = [(r.along(steps, x), values) for r, steps, values in series if len(steps)]
    found = [(at, values) for at, values in found if np.isfinite(at).all()]
    return found if transform is None else [(steps, transform(values)) for steps, values in found]


def _along(result: Result, step: float, x: XAxis) -> float:
    return float(result.along(np.array([step]), x)[0])


def survival(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Fraction of seeds not collapsed by a step (Kaplan-Meier); needs six seeds."""
    points = shown_points(groups)
    if not any(g.with_verdict >= _SURVIVAL_FROM and g.collapse_steps for g in groups):
        return None
    from scipy import stats  # the import takes 0.5 s

    figure, axes = panels(len(points), 2.4, 3, sharex=True, sharey=True)
    for part, (point, members) in zip(axes, points.items(), strict=True):
        for place, group in enumerate(members):
            judged = [r for r in group.results if group.verdicts[r.seed] is not None]
            judged = [r for r in judged if math.isfinite(_along(r, r.step, settings.x))]
            if not judged:
                continue
            turned = [group.judged[r.seed].collapsed_at for r in judged]
            pairs = list(zip(judged, turned, strict=True))
            end = [_along(r, r.step, settings.x) for r, at in pairs if at is None]
            uncensored = [_along(r, at, settings.x) for r, at in pairs if at is not None]
            data: stats.CensoredData = stats.CensoredData(uncensored=uncensored, right=end)
            curve = stats.ecdf(data).sf
            last = max(_along(r, r.step, settings.x) for r in judged)
            look = looks[group.variant]
            x = np.concatenate([[0], curve.quantiles, [last]])
            y = np.concatenate([[1], curve.probabilities, curve.probabilities[-1:]])
            apart = 0.012 * (place - (len(members) - 1) / 2)  # shifted, so that equal curves do not hide each other
            part.step(x, y + apart, where="post", color=look.colour, label=group.variant, **look.line)
        part.set(ylim=(-0.08, 1.08), title=point_title(point))
    figure.supxlabel(X_LABELS[settings.x], fontsize=9)
    figure.supylabel("fraction of seeds not collapsed", fontsize=9)
    note_points(figure, groups)
    legend(figure, axes)
    return figure
