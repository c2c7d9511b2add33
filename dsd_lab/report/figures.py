"""The figures of a report: one colour a variant throughout, labelled axes, SVG and PNG at print size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dsd_lab.report.results import Result
from dsd_lab.report.tables import Group
from dsd_lab.report.verdicts import latent_state
from dsd_lab.specs.sweep import ReportSettings

# Okabe and Ito's colours, told apart by colour-blind readers; the control is grey.
_COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#F0E442", "#000000")
_MARKERS = "osD^v<>h"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "dsd-lab",
    "svg.fonttype": "path",
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}


def colours_of(groups: list[Group], control: str | None) -> dict[str, str]:
    """A colour for every variant, the same in all figures."""
    variants = [v for v in dict.fromkeys(g.variant for g in groups) if v != control]
    return {
        **({control: "#7f7f7f"} if control else {}),
        **{v: _COLOURS[i % len(_COLOURS)] for i, v in enumerate(variants)},
    }


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path`.svg and `path`.png, without dates, so that the same data give the same bytes."""
    for suffix in (".svg", ".png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {"Software": None})
        path.with_suffix(suffix).write_bytes(buffer.getvalue())
    plt.close(figure)


def draw_all(groups: list[Group], settings: ReportSettings, folder: Path) -> list[tuple[str, str]]:
    """Draw every figure that the data allow; returns (file stem, caption) in reading order."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, str]] = []
    points = list(dict.fromkeys(g.name.removeprefix(g.variant).removeprefix(", ") for g in groups))
    for point in points:
        members = [g for g in groups if g.name.removeprefix(g.variant).removeprefix(", ") == point]
        suffix = "" if len(points) == 1 else "-" + "".join(c if c.isalnum() else "_" for c in point)
        where = f" ({point})" if point else ""
        for stem, caption, draw in _FIGURES:
            with plt.rc_context(_STYLE):
                figure = draw(members, settings)
                if figure is not None:
                    save_figure(figure, folder / f"{stem}{suffix}")
                    drawn.append((f"{stem}{suffix}", caption + where))
    return drawn


def _verdict_map(groups: list[Group], settings: ReportSettings) -> Figure | None:
    """Scale and rank of every trial relative to its control, with the verdicts' regions."""
    controls = {
        r.seed: latent_state(r, settings.probes)
        for g in groups
        if g.variant == settings.control
        for r in g.results
        if r.state in ("done", "stale")
    }
    if not any(controls.values()):
        return None
    colours = colours_of(groups, settings.control)
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    scales: list[float] = []
    ranks: list[float] = []
    others = [g for g in groups if g.variant != settings.control]
    for index, group in enumerate(others):
        shown = []
        for result in group.results:
            state, control = (
                latent_state(result, settings.probes) if group.verdicts[result.seed] else None,
                controls.get(result.seed),
            )
            if state is None or control is None or min(control.std, control.rank_token, control.rank_image) == 0:
                continue
            shown.append(
                (
                    max(state.std / control.std, 1e-4),
                    min(state.rank_token / control.rank_token, state.rank_image / control.rank_image),
                )
            )
        if shown:
            scale, rank = zip(*shown, strict=True)
            axes.scatter(
                scale,
                rank,
                s=55,
                color=colours[group.variant],
                marker=_MARKERS[index % 8],
                label=group.variant,
                edgecolor="white",
                linewidth=0.7,
                zorder=3,
            )
            scales += scale
            ranks += rank
    if not scales:
        plt.close(figure)
        return None
    low, high = min([*scales, settings.shrunk / 3]) / 1.6, max([*scales, settings.runaway]) * 1.6
    top = max([*ranks, 1.0]) * 1.12
    axes.axvspan(low, settings.shrunk, color="#d62728", alpha=0.07, zorder=0)
    axes.axvspan(settings.runaway, high, color="#9467bd", alpha=0.09, zorder=0)
    axes.fill_between([settings.shrunk, settings.runaway], 0, settings.rank, color="#ff7f0e", alpha=0.10, zorder=0)
    regions = (
        (math.sqrt(low * settings.shrunk), top, "shrunk"),
        (math.sqrt(settings.shrunk * settings.runaway), top, "healthy"),
    )
    for x, y, text in (
        *regions,
        (math.sqrt(settings.shrunk * settings.runaway), settings.rank * 0.98, "rank-collapsed"),
        (math.sqrt(settings.runaway * high), top, "runaway"),
    ):
        axes.text(x, y * 0.985, text, ha="center", va="top", fontsize=8, color="0.35")
    axes.plot(1, 1, "x", color="#444444", markersize=9, markeredgewidth=1.5, label="control", zorder=4)
    axes.set(
        xscale="log",
        xlim=(low, high),
        ylim=(0, top),
        xlabel="latent std relative to the control",
        ylabel="effective rank relative to the control\n(the lower of token and image level)",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curves(groups: list[Group], settings: ReportSettings) -> Figure | None:
    """Scale, ranks and capacity over training."""
    panels = (
        ("latent/variance", "latent std", True, np.sqrt),
        ("latent/effective_rank/token", "effective rank, tokens", False, None),
        ("latent/effective_rank/image", "effective rank, images", False, None),
        ("latent/capacity_bits/token", "capacity, bits a token", False, None),
    )
    if not any(len(r.series("latent/variance")) for g in groups for r in g.results):
        return None
    colours = colours_of(groups, settings.control)
    figure, grid = plt.subplots(2, 2, figsize=(8.4, 5.6), sharex=True)
    for axes, (name, label, logarithmic, transform) in zip(grid.flat, panels, strict=True):
        for group in groups:
            _band(
                axes,
                [r.series(name) for r in group.results],
                colours[group.variant],
                group.variant,
                transform,
                _line(group, settings),
            )
        axes.set(ylabel=label, **({"yscale": "log"} if logarithmic else {"ylim": (0, None)}))
    for axes in grid[1]:
        axes.set_xlabel("optimiser step")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _line(group: Group, settings: ReportSettings) -> dict[str, Any]:
    # The control is dashed and on top: detached latents can follow it exactly.
    return (
        {"linestyle": "--", "linewidth": 1.6, "zorder": 4} if group.variant == settings.control else {"linewidth": 1.6}
    )


def _band(
    axes: Axes, series: list[pd.Series], colour: str, label: str, transform: Callable | None, line: dict[str, Any]
) -> None:
    table = pd.concat([s for s in series if len(s)], axis=1) if any(len(s) for s in series) else None
    if table is None:
        return
    table = table.sort_index()
    table = table if transform is None else transform(table)
    axes.plot(table.index, table.mean(axis=1), color=colour, label=label, **line)
    axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.18, linewidth=0)


def _spectra(groups: list[Group], settings: ReportSettings) -> Figure | None:
    """Eigenvalues of the latents' covariance at the end of training."""
    colours = colours_of(groups, settings.control)
    figure, grid = plt.subplots(1, 2, figsize=(8.4, 3.4))
    drawn = False
    for axes, level in zip(grid, ("token", "image"), strict=True):
        for group in groups:
            finals = [
                s.iloc[-1].to_numpy(dtype=float)
                for r in group.results
                if r.state in ("done", "stale") and len(s := r.spectrum(f"spectrum/{level}"))
            ]
            if finals:
                drawn = True
                values = np.stack(finals)
                values = np.where(values > 1e-10, values, np.nan)  # a direction that the normaliser removes is left out
                order = np.arange(1, values.shape[1] + 1)
                colour = colours[group.variant]
                axes.plot(order, values.mean(0), color=colour, label=group.variant, **_line(group, settings))
                axes.fill_between(
                    order, values.min(0), values.max(0), color=colours[group.variant], alpha=0.18, linewidth=0
                )
        axes.axhline(1.0, color="0.4", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel=f"eigenvalue index, {level} level", ylabel="covariance eigenvalue")
    if not drawn:
        plt.close(figure)
        return None
    grid[0].text(1, 1.1, "unit noise", fontsize=7, color="0.4")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _rank_gap(groups: list[Group], settings: ReportSettings) -> Figure | None:
    """Rank of the clean target minus rank of the clean prediction, by time."""
    colours = colours_of(groups, settings.control)
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    drawn = False
    for index, group in enumerate(groups):
        names = sorted(
            {n for r in group.results for n in r.metrics if n.startswith("rank_gap/")},
            key=lambda n: int(n.rsplit("t", 1)[1]),
        )
        if not names:
            continue
        drawn = True
        table = np.array(
            [[r.last_probes(n, settings.probes) for n in names] for r in group.results if n_probes(r, names)],
            dtype=float,
        )
        centres = (np.arange(len(names)) + 0.5) / len(names)
        axes.plot(
            centres,
            table.mean(0),
            color=colours[group.variant],
            marker=_MARKERS[index % 8],
            markersize=4,
            label=group.variant,
            linewidth=1.4,
        )
        axes.fill_between(centres, table.min(0), table.max(0), color=colours[group.variant], alpha=0.15, linewidth=0)
    if not drawn:
        plt.close(figure)
        return None
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set(xlabel="time t (0: noise, 1: clean)", ylabel="rank gap:\ntarget minus prediction", xlim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def n_probes(result: Result, names: list[str]) -> bool:
    """Whether a trial has all of these probes."""
    return all(len(result.series(n)) for n in names)


def _pictures(name: str) -> Callable[[list[Group], ReportSettings], Figure | None]:
    def draw(groups: list[Group], settings: ReportSettings) -> Figure | None:
        shown = []
        for group in groups:
            for result in sorted(group.results, key=lambda r: r.seed):
                path = _final(result, name)
                if path is not None:
                    shown.append((group.variant, result.seed, path))
                    break
        if not shown:
            return None
        columns = min(4, len(shown))
        rows = -(-len(shown) // columns)
        first = Image.open(shown[0][2])
        cell = 8.4 / columns
        figure, grid = plt.subplots(
            rows, columns, figsize=(8.4, rows * (cell * first.height / first.width + 0.3)), squeeze=False
        )
        for axes in grid.flat:
            axes.axis("off")
        for axes, (variant, seed, path) in zip(grid.flat, shown, strict=False):
            axes.imshow(np.asarray(Image.open(path)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(f"{variant}, seed {seed}", fontsize=8)
        return figure

    return draw


def _final(result: Result, name: str) -> Path | None:
    if result.folder is None or result.state not in ("done", "stale"):
        return None
    found = sorted((result.folder / "final").glob(f"{name}*.png"))
    return found[0] if found else None


_FIGURES: tuple[tuple[str, str, Callable[[list[Group], ReportSettings], Figure | None]], ...] = (
    (
        "verdicts",
        "Every trial against the control of its seed: scale and rank of its latents, and the regions of the verdicts.",
        _verdict_map,
    ),
    (
        "curves",
        "Scale, ranks and capacity of the latents over training. Line: mean over seeds; band: smallest to largest seed.",
        _curves,
    ),
    (
        "spectra",
        "Covariance spectra of the latents at the end of training. Below the dotted line a direction is drowned by diffusion's noise.",
        _spectra,
    ),
    (
        "rank_gap",
        "Rank differential: effective rank of the clean target minus that of the clean prediction, token level, by time. Band: smallest to largest seed.",
        _rank_gap,
    ),
    (
        "reconstructions",
        "Held-out images (odd columns) and their reconstructions by the averaged weights (even columns).",
        _pictures("reconstruction"),
    ),
    (
        "samples",
        "Samples of the averaged weights; all variants start from the same noise and labels.",
        _pictures("evaluation"),
    ),
)
