"""Figures of images: reconstructions and samples of all variants."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dsd_lab.files.image_files import DamagedImage, open_grid
from dsd_lab.report.figures.style import MAX_POINTS, WIDTH, Look, narrow_title, note_left_out, shown_points
from dsd_lab.report.groups import Group, points_of
from dsd_lab.report.results import Result
from dsd_lab.specs.report import ReportSettings

_MAX_ROWS = 12
"""Maximum number of rows (grid points) in a figure."""


def reconstructions(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Held-out images and their reconstructions."""
    return _side_by_side(groups, "reconstruction")


def samples(groups: list[Group], looks: dict[str, Look], settings: ReportSettings) -> Figure | None:
    """Samples from the same noise and labels."""
    return _side_by_side([g for g in groups if any(_samples(r) for r in g.finished)], "evaluation")


def _samples(result: Result) -> bool:
    """Whether there is a denoiser; pictures of a control's evaluations are reconstructions."""
    return result.description is not None and result.trial.has_denoiser


def note_damaged(groups: list[Group]) -> None:
    """Record damaged pictures in the results; the child processes that draw figures cannot."""
    for group in groups:
        for name in ("reconstruction", "evaluation"):
            _first(group, name)


def _side_by_side(groups: list[Group], name: str) -> Figure | None:
    """One picture per variant; with a grid, one row per grid point."""
    points = shown_points(groups)
    shown = {g.name: found for members in points.values() for g in members if (found := _first(g, name)) is not None}
    if not shown:
        return None
    variants = list(dict.fromkeys(g.variant for g in groups if g.name in shown))
    points = {p: m for p, m in points.items() if any(g.name in shown for g in m)}
    first = next(iter(shown.values()))[1]
    ratio = first.shape[0] / first.shape[1]
    rows: list[list[tuple[str, tuple[int, np.ndarray] | None]]] = []
    if len(points) == 1:
        columns = min(3, len(variants))
        cells = [(g.variant, shown[g.name]) for g in next(iter(points.values())) if g.name in shown]
        rows += [[*cells[i : i + columns]] for i in range(0, len(cells), columns)]
        names = [""] * len(rows)
    else:
        columns, names = len(variants), list(points)[:_MAX_ROWS]
        for point in names:
            there = {g.variant: shown[g.name] for g in points[point] if g.name in shown}
            rows.append([(v, there[v]) if v in there else ("", None) for v in variants])
    width = max(WIDTH, 1.35 * columns)
    figure = Figure(figsize=(width, len(rows) * (width / columns * ratio + 0.28)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for part in grid.flat:
        part.set(xticks=[], yticks=[], frame_on=False)
    for parts, row, label in zip(grid, rows, names, strict=True):
        parts[0].set_ylabel(narrow_title(label), fontsize=6.5)
        for part, (variant, picture) in zip(parts, row, strict=False):
            if picture is not None:
                seed, pixels = picture
                part.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                part.set_title(f"{variant}, seed {seed}", fontsize=8 if columns < 6 else 6)
    beyond = max(0, len(points_of(groups)) - MAX_POINTS)
    note_left_out(figure, min(len(points), _MAX_ROWS), len(points) + beyond, "grid points")
    return figure


def _first(group: Group, name: str) -> tuple[int, np.ndarray] | None:
    """Seed and pixels of the first seed that has a picture."""
    for result in sorted(group.finished, key=lambda r: r.seed):
        found = _final(result, name)
        if found is not None:
            return result.seed, found
    return None


def _final(result: Result, name: str) -> np.ndarray | None:
    for path in [] if result.folder is None else sorted((result.folder / "final").glob(f"{name}*.png")):
        try:
            return np.asarray(open_grid(path))
        except DamagedImage as damage:
            result.unreadable.append(f"{path.name}: {damage}")
    return None
