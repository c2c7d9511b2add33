"""VIV and capacity against FID, trial by trial: healthy trials filled, collapsed ones crossed out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_lab.report.figures.style import Look, legend, panels
from dsd_lab.report.groups import Group
from dsd_lab.report.statistics.latent_state import VERDICTS
from dsd_lab.report.statistics.viv import PREDICTORS, Sampled, explained, line, sampled, table_of
from dsd_lab.specs.report import ReportSettings

_MAX_ROWS = 4
"""Data sets and kinds of FID in a figure."""
_BEYOND = 0.5
"""Part of the healthy trials' range by which their line goes beyond them."""
_MARKS = dict(zip(VERDICTS, ("o", "x", "+", "^"), strict=True))


def viv(groups: Sequence[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Three panels for each data set and kind of FID; None where fewer than two trials have both."""
    found = {key: trials for key, trials in sampled(groups, settings).items() if len(trials) > 1}
    if not found:
        return None
    shown = list(found.items())[:_MAX_ROWS]
    figure, axes = panels(3 * len(shown), 2.9, 3)
    figure.set_figwidth(9.6)
    for row, ((data, fid), trials) in enumerate(shown):
        healthy = [t for t in trials if t.healthy]
        first, second, third = axes[3 * row : 3 * row + 3]
        for part, name, label in ((first, "viv", "VIV"), (second, "capacity", "capacity, bits a token")):
            _scatter(part, trials, [getattr(t, name) for t in trials], looks)
            _through(part, healthy, name)
            part.set_xlabel(label)
            part.set_title(_found(label.partition(",")[0], healthy, trials, (name,)), fontsize=8)
        x, y = table_of(trials, PREDICTORS["VIV and capacity"])
        enough = len(trials) > x.shape[1] and np.linalg.matrix_rank(x) == x.shape[1]
        if enough:
            _scatter(third, trials, (10 ** (x @ line(x, y))).tolist(), looks)
            ends = [10 ** y.min(), 10 ** y.max()]
            third.plot(ends, ends, ":", color="0.5", linewidth=0.8)
            third.set_xlabel("FID by VIV and capacity")
            third.set_title(_found("both", healthy, trials, PREDICTORS["VIV and capacity"]), fontsize=8)
        third.set_visible(bool(enough))
        first.set_ylabel(f"{fid.partition('/')[0].upper()} ({fid.partition('/')[2].split('-')[0]})\n{data}")
    present = {t.verdict for _, trials in shown for t in trials}
    for verdict, mark in _MARKS.items():
        if verdict in present:
            axes[0].plot([], [], mark, color="0.4", markersize=5, linestyle="", label=verdict)
    legend(figure, axes)
    return figure


def _scatter(axes: Axes, trials: list[Sampled], places: list[float], looks: dict[str, Look]) -> None:
    for variant in dict.fromkeys(t.variant for t in trials):
        for verdict, mark in _MARKS.items():
            some = [(x, t.fid) for t, x in zip(trials, places, strict=True) if (t.variant, t.verdict) == (variant, verdict)]  # fmt: skip
            if some:
                x, y = zip(*some, strict=True)
                axes.scatter(x, y, s=24, color=looks[variant].colour, marker=mark, linewidth=1.1, zorder=3)
        axes.plot([], [], "s", color=looks[variant].colour, markersize=5, linestyle="", label=variant)
    axes.set(xscale="log", yscale="log")


def _through(axes: Axes, healthy: list[Sampled], name: str) -> None:
    """The line through the healthy trials, a little beyond them."""
    if explained(healthy, (name,)).pearson is None:
        return
    x, y = table_of(healthy, (name,))
    low, slope = line(x, y)
    reach, limits = _BEYOND * np.ptp(x[:, 1]), axes.get_ylim()
    ends = np.array([x[:, 1].min() - reach, x[:, 1].max() + reach])
    axes.plot(10**ends, 10 ** (low + slope * ends), "--", color="0.5", linewidth=0.9, zorder=1)
    axes.set(ylim=limits)


def _found(label: str, healthy: list[Sampled], trials: list[Sampled], names: tuple[str, ...]) -> str:
    """Correlation among healthy trials and among all; of two numbers at once, R² of variants that a line has not seen."""
    of, what = (
        [explained(some, names) for some in (healthy, trials)],
        "r" if len(names) == 1 else "R² left out",
    )
    values = [f.pearson if len(names) == 1 else f.left_out for f in of]
    told = ", ".join(f"{kind} {v:+.2f}" for kind, v in zip(("healthy", "all"), values, strict=True) if v is not None)
    return f"{label}: {what} {told}" if told else label
