"""VIV and capacity against FID, one mark per trial, by its verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dsd_lab.report.figures.style import Look, add_note, legend, note_left_out, panels
from dsd_lab.report.groups import Group
from dsd_lab.report.statistics.latent_state import VERDICTS
from dsd_lab.report.statistics.viv import PREDICTORS, Sampled, explained, line, sampled, table_of
from dsd_lab.specs.report import ReportSettings

_MAX_ROWS = 4
"""Maximum number of data sets and kinds of FID in a figure."""
_BEYOND = 0.5
"""Fraction of the healthy trials' range by which their line is extended at both ends."""
_WIDE = 200
"""Ratio of the largest to the smallest value above which an axis has one label per decade."""
_MARKS = dict(zip(VERDICTS, ("o", "x", "+", "^"), strict=True))
_VERDICT_COLOURS = dict(zip(VERDICTS, ("#0072B2", "#d62728", "#ff7f0e", "#9467bd"), strict=True))
_BY_VERDICT = "Colours are those of the verdicts, because there are more variants than colours."


def viv(groups: Sequence[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Three panels for each data set and kind of FID; None where fewer than two trials have both."""
    found = {key: trials for key, trials in sampled(groups, settings).items() if len(trials) > 1}
    if not found:
        return None
    shown = list(found.items())[:_MAX_ROWS]
    variants = dict.fromkeys(t.variant for _, trials in shown for t in trials)
    colours = {variant: looks[variant].colour for variant in variants}
    by_variant = len({*colours.values()}) == len(colours)
    figure, axes = panels(3 * len(shown), 2.9, 3)
    figure.set_figwidth(9.6)
    for row, ((data, fid), trials) in enumerate(shown):
        healthy = [t for t in trials if t.healthy]
        first, second, third = axes[3 * row : 3 * row + 3]
        for part, name, label in ((first, "viv", "VIV"), (second, "capacity", "capacity, bits per token")):
            _scatter(part, trials, [getattr(t, name) for t in trials], colours if by_variant else None)
            _through(part, healthy, name)
            part.set_xlabel(label)
            part.set_title(_title(label.partition(",")[0], healthy, trials, (name,)), fontsize=8)
        enough = explained(trials, PREDICTORS["VIV and capacity"]).r2 is not None
        if enough:
            x, y = table_of(trials, PREDICTORS["VIV and capacity"])
            _scatter(third, trials, (10 ** (x @ line(x, y))).tolist(), colours if by_variant else None)
            ends = [10 ** y.min(), 10 ** y.max()]
            third.plot(ends, ends, ":", color="0.5", linewidth=0.8)
            third.set_xlabel("FID by VIV and capacity")
            third.set_title(_title("both", healthy, trials, PREDICTORS["VIV and capacity"]), fontsize=8)
        third.set_visible(enough)
        first.set_ylabel(f"{fid.partition('/')[0].upper()} ({fid.partition('/')[2].split('-')[0]})\n{data}")
    present = {t.verdict for _, trials in shown for t in trials}
    for verdict, mark in _MARKS.items():
        if verdict in present:
            colour = "0.4" if by_variant else _VERDICT_COLOURS[verdict]
            axes[0].plot([], [], mark, color=colour, markersize=5, linestyle="", label=verdict)
    if not by_variant:
        add_note(figure, _BY_VERDICT)
    note_left_out(figure, len(shown), len(found), "data sets and kinds of FID; the table has all")
    legend(figure, axes)
    return figure


def _scatter(axes: Axes, trials: list[Sampled], places: list[float], colours: dict[str, str] | None) -> None:
    """Marks by verdict, coloured by variant, or by verdict where `colours` is None."""
    for variant, verdict in dict.fromkeys((t.variant, t.verdict) for t in trials):
        some = [(x, t.fid) for t, x in zip(trials, places, strict=True) if (t.variant, t.verdict) == (variant, verdict)]
        x, y = zip(*some, strict=True)
        colour = _VERDICT_COLOURS[verdict] if colours is None else colours[variant]
        axes.scatter(x, y, s=24, color=colour, marker=_MARKS[verdict], linewidth=1.1, zorder=3)
    for variant, colour in ({} if colours is None else colours).items():
        axes.plot([], [], "s", color=colour, markersize=5, linestyle="", label=variant)
    axes.set(xscale="log", yscale="log")
    for axis, values in ((axes.xaxis, places), (axes.yaxis, [t.fid for t in trials])):
        wide = max(values) > _WIDE * min(values)
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=6))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


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


def _title(label: str, healthy: list[Sampled], trials: list[Sampled], names: tuple[str, ...]) -> str:
    """Pearson's correlation over healthy and over all trials; of two predictors, R² with variants left out."""
    found = {kind: explained(some, names) for kind, some in (("healthy", healthy), ("all", trials))}
    values = {kind: f.pearson if len(names) == 1 else f.left_out for kind, f in found.items()}
    known = ", ".join(f"{kind} {v:+.2f}" for kind, v in values.items() if v is not None)
    what = "r" if len(names) == 1 else "R², variants left out"
    return f"{label}: {what} {known}" if known else label
