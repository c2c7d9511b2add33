"""The live table of a sweep: running trials with their records, and the states of all trials, for any width."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dsd_lab.cli.live_trials import TrialSnapshot
from dsd_lab.files.printable import printable
from dsd_lab.report.statistics.latent_state import HEALTHY, LatentState
from dsd_lab.units import short_count

_WIDE = 140
"""Minimum terminal width for the progress bar and all ranks."""
_STATES = {
    "done": ("●", "green", "done"),
    "running": ("◐", "cyan", "running"),
    "pending": ("○", "dim", "pending"),
    "interrupted": ("◌", "magenta", "interrupted (the next sweep resumes it)"),
    "diverged": ("▲", "yellow", "diverged (NaN or infinite: a result)"),
    "failed": ("✗", "bold red", "failed"),
    "stopped": ("■", "yellow", "stopped (by a forecast)"),
}
"""Symbol, colour and explanation by state."""
_OTHER = ("◌", "yellow")


@dataclass(frozen=True)
class Row:
    """A running trial."""

    name: str
    step: int
    steps: int
    so_far: TrialSnapshot
    seconds_left: float | None


@dataclass(frozen=True)
class Variant:
    """The trials of a variant and grid point."""

    name: str
    states: list[str]
    """By seed."""
    note: str
    """Progress of evaluations, or why trials ended early; else empty."""


def live_table(summary: str, rows: list[Row], variants: list[Variant], width: int, height: int) -> Group:
    """The live display: a summary, a row per running trial and a row per variant.

    Args:
        summary: counts and times of the whole sweep.
        rows: running trials.
        variants: all variants of the sweep.
        width: columns of the terminal.
        height: lines of the terminal; rows that do not fit are counted.
    """
    head, legend = Text(printable(summary)), _legend(variants)
    used = sum(math.ceil(len(text) / width) for text in (head, legend))
    room = max(height - used - 4, 4)  # header, note on bounds, two counts of hidden rows
    shown = rows[: max(room - min(len(variants), room // 2), 1)]
    left = variants[: max(room - len(shown), 1)]
    parts: list[RenderableType] = [head]
    if shown:
        parts.append(_trials(shown, width))
        if any(_by_bounds(row.so_far) for row in shown):
            parts.append(_line("* by fixed bounds: the trial is a control, or its control has no probe yet", "dim"))
    if more := len(rows) - len(shown):
        parts.append(_line(f"and {more} more running", "dim"))
    parts.append(_variants(left))
    if more := len(variants) - len(left):
        parts.append(_line(f"and {more} more variants", "dim"))
    return Group(*parts, *([legend] if legend.plain else []))


def plain_row(row: Row) -> str:
    """A running trial as one line of text."""
    found = row.so_far
    parts = [f"{row.name}: step {row.step:,} of {row.steps:,}"]
    if found.images_per_second is not None:
        parts.append(f"{found.images_per_second:,.0f} images/s")
    if found.loss is not None:
        parts.append(f"loss {found.loss:.4g}")
    if found.state is not None:
        parts.append(f"latent std {found.state.std:.3g}, effective rank {found.state.rank_token:.3g}")
    if found.verdict is not None:
        against = f"compared with {found.control}" if found.control else "by fixed bounds"
        parts.append(f"{found.verdict} so far {against}")
    if row.seconds_left is not None:
        parts.append(f"{clock(row.seconds_left)} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """`0:42`, `3:05`, `2:10:00`, `3d 04h`: at most eight characters."""
    whole = max(0, round(seconds))
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 100:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _by_bounds(found: TrialSnapshot) -> bool:
    return found.verdict is not None and found.control is None


def _trials(rows: list[Row], width: int) -> Table:
    wide = width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), expand=wide)
    table.add_column("trial", min_width=12)  # this column shrinks if needed
    if wide:
        table.add_column("", ratio=1)
    for name in _HEADERS[wide]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict so far", no_wrap=True)
    if wide:
        table.add_column("against", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    for row in rows:
        found = row.so_far
        numbers = [
            f"{_count(row.step)}/{_count(row.steps)}",
            "" if found.images_per_second is None else _count(round(found.images_per_second)),
            _number(found.loss),
            *(_number(value) for value in _latents(found.state)[: 4 if wide else 2]),
        ]
        colour = "" if found.verdict is None else "green" if found.verdict == HEALTHY else "red"
        table.add_row(
            _line(row.name),
            *([ProgressBar(row.steps, row.step, complete_style="cyan")] if wide else []),
            *numbers,
            Text(f"{found.verdict or ''}{'*' if _by_bounds(found) else ''}", colour),
            *([_line(found.control or "")] if wide else []),
            "" if row.seconds_left is None else clock(row.seconds_left),
        )
    return table


_HEADERS = {
    False: ("step", "img/s", "loss", "std", "rank"),
    True: ("step", "images/s", "loss", "latent std", "effective rank", "of images", "bits/token"),
}
"""By whether the terminal is wide. The rank is that of tokens; wide terminals also show that of whole images."""


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else short_count(number)


def _latents(state: LatentState | None) -> tuple[float | None, ...]:
    """Shown values of the latents, the most important first."""
    return (None,) * 4 if state is None else (state.std, state.rank_token, state.rank_image, state.capacity)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _variants(variants: list[Variant]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(max_width=60)
    table.add_column(no_wrap=True)
    table.add_column()
    for variant in variants:
        marks = Text()
        if len(variant.states) > 12:  # long rows of symbols are unreadable
            counts = Counter(variant.states)
            marks.append(", ".join(f"{count} {state}" for state, count in counts.items()))
        else:
            for state in variant.states:
                marks.append(*_STATES.get(state, _OTHER)[:2])
        table.add_row(_line(variant.name), marks, _line(variant.note))
    return table


def _legend(variants: list[Variant]) -> Text:
    """Explanations of the symbols of ended trials that need one."""
    present = {state for variant in variants for state in variant.states}
    if not present & {"interrupted", "diverged", "failed", "stopped"}:
        return Text()
    shown = [f"{mark} {what}" for state, (mark, _, what) in _STATES.items() if state in present]
    return Text("  ".join(shown), "dim")
