"""Shared by all figures: one look per variant, small multiples over grid points, bands over seeds, saving."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group, points_of
from dsd_lab.specs.report import XAxis

# Okabe and Ito's palette for colour-blind readers; the control is grey.
_COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#A0921B", "#000000")
_MARKERS = "osD^v<>hpX"
_CONTROL = "#7f7f7f"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "dsd-lab",
    "svg.fonttype": "path",
    "savefig.dpi": 200,
}
WIDTH = 8.4
"""Width in inches: two columns of a journal."""
MAX_POINTS = 24
"""Maximum number of grid points in a figure; tables have all."""
_NARROW = 18
"""Maximum characters per line in the title of a narrow panel."""
_MANY_PANELS = 8
"""With more panels, ticks are thinned."""
_MAX_STEPS = 250
"""Maximum number of points on a curve."""


X_LABELS: dict[XAxis, str] = {
    "step": "optimiser step",
    "images": "training images seen",
    "flops": "training FLOPs",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a variant in all figures."""

    colour: str
    marker: str
    line: dict[str, Any]


def looks_of(groups: list[Group], control: str | None) -> dict[str, Look]:
    """A look for every variant; after eight, colours repeat with another line style."""
    looks = {control: Look(_CONTROL, "*", {"linestyle": "--", "linewidth": 1.5, "zorder": 4})} if control else {}
    others = [v for v in dict.fromkeys(g.variant for g in groups) if v != control]
    for i, variant in enumerate(others):
        style = ("-", "-.", ":")[i // len(_COLOURS) % 3]
        line = {"linestyle": style, "linewidth": 1.5}
        looks[variant] = Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], line)
    return looks


def add_note(figure: Figure, note: str) -> None:
    """Add a sentence to the figure's caption, once; `notes_of` returns them all."""
    if note not in notes_of(figure):
        figure.set_label(f"{notes_of(figure)} {note}".strip())


def notes_of(figure: Figure) -> str:
    """The sentences that a figure adds to its caption: what of the data it does not show."""
    return str(figure.get_label())


def note_left_out(figure: Figure, shown: int, count: int, what: str) -> None:
    """Say in the caption that a figure shows the first `shown` of `count` items only, if it does."""
    if shown < count:
        add_note(figure, f"The first {shown} of {count} {what}.")


def note_points(figure: Figure, groups: list[Group]) -> None:
    """`note_left_out` for figures of `shown_points`."""
    note_left_out(figure, MAX_POINTS, len(points_of(groups)), "grid points")


def shown_points(groups: list[Group]) -> dict[str, list[Group]]:
    """Name of grid point -> its groups, for the grid points in figures."""
    return dict(list(points_of(groups).items())[:MAX_POINTS])


def panels(count: int, height: float = 2.3, most_columns: int = 4, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, in rows of nearly equal length; unused panels are hidden."""
    rows = -(-count // most_columns)
    columns = -(-count // rows)
    width = WIDTH if columns > 1 else 6.0
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for place in range(count, len(axes)):
        axes[place].set_visible(False)
        axes[place - columns].tick_params(labelbottom=True)  # now the lowest visible panel of its column
    return figure, axes[:count]


def point_title(point: str, width: int = 34) -> str:
    """A grid point's name as the title of a panel, with line breaks; `$` is escaped."""
    return "\n".join(textwrap.wrap(point, width)).replace("$", r"\$")


def band(axes: Axes, curves: list[tuple[NDArray[Any], Floats]], look: Look, label: str) -> None:
    """Draw the mean of curves (steps [S], values [S]) as a line, and their range as a band."""
    curves = [c for c in curves if len(c[0])]
    if not curves:
        return
    steps = curves[0][0]
    if all(np.array_equal(steps, s) for s, _ in curves):
        table = np.stack([v for _, v in curves])
    else:
        steps = np.unique(np.concatenate([s for s, _ in curves]))
        table = np.full((len(curves), len(steps)), np.nan)
        for row, (at, values) in zip(table, curves, strict=True):
            row[np.searchsorted(steps, at)] = values
    if len(steps) > _MAX_STEPS:
        figure = axes.get_figure(root=True)
        assert figure is not None  # an axes that was drawn on has one
        add_note(figure, f"Curves are thinned to {_MAX_STEPS} steps.")
        kept = np.unique(np.linspace(0, len(steps) - 1, _MAX_STEPS).round().astype(int))
        steps, table = steps[kept], table[:, kept]
    axes.plot(steps, np.nanmean(table, axis=0), color=look.colour, label=label, **look.line)
    if len(curves) > 1:
        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
        axes.fill_between(steps, low, high, color=look.colour, alpha=0.18, linewidth=0)


def narrow_title(point: str) -> str:
    """`point_title` for a narrow panel; a long `key=value` may break after its equals sign."""
    return point_title(point if len(point) <= _NARROW else point.replace("=", "= "), _NARROW)


def legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend for all panels, at the right."""
    found: dict[str, Any] = {}
    for part in axes:
        for handle, label in zip(*part.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside right upper")


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path`.svg and `path`.png without dates: the same data give the same bytes."""
    _thin_ticks(figure)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
    figure.set_layout_engine("none")  # the layout is computed once for both formats
    for suffix in (".svg", ".png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {"Software": None})
        path.with_suffix(suffix).write_bytes(buffer.getvalue())


def _thin_ticks(figure: Figure) -> None:
    """Use fewer ticks in figures with many panels: tick labels take half of the drawing time."""
    if len(figure.axes) <= _MANY_PANELS:
        return
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        locator = axis.get_major_locator()
        if isinstance(locator, AutoLocator):
            locator.set_params(nbins=4)
        elif isinstance(locator, LogLocator):
            axis.set_minor_locator(NullLocator())


def style() -> Any:
    """The context in which figures are drawn and saved."""
    return matplotlib.rc_context(STYLE)
