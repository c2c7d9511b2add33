"""Slow collapse: whether and when a trial crosses the verdict's thresholds, and which measured signs precede it.

The margin of a trial at a step is how far its state is above the nearest threshold of `shrunk` and `rank-collapsed`,
as a multiple of it, against its control at that step: below 1 the verdict is unhealthy. A sign is on at a probe if its
median over the last probes is positive. It precedes a crossing by the length of the unbroken run of probes in which it was
on until then. In a trial that does not cross, it is a false alarm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.agreement import scale_record
from dsd_lab.report.statistics.latent_state import LatentState, control_at, running_median
from dsd_lab.report.statistics.verdicts import cell_of, controls_of, states_over_training
from dsd_lab.report.tables.rendering import Cell, Table, shown
from dsd_lab.specs.metrics import RANK_GAP
from dsd_lab.specs.report import ReportSettings

Series = tuple[NDArray[Any], Floats]
"""Steps [S] and values [S]."""
_PER = 1000


def margin(state: LatentState, control: LatentState, settings: ReportSettings) -> float:
    """The smallest measure over its threshold; below 1 the latents are shrunk or rank-collapsed."""
    pairs = (
        (state.std, settings.shrunk * control.std),
        (state.capacity, settings.capacity * control.capacity),
        (state.rank_token, settings.rank * control.rank_token),
        (state.rank_image, settings.rank * control.rank_image),
    )
    return min(value / bound for value, bound in pairs if bound > 0) if any(b > 0 for _, b in pairs) else 1.0


def _gap(result: Result) -> Series:
    """Rank gap, mean over bins of t, times -1: positive where the prediction has the higher rank."""
    steps, values = result.history.mean_over(RANK_GAP)
    return steps, -values


def _differential(result: Result) -> Series:
    """Rank differential over the training times, times -1."""
    steps, values = result.history.series("theory/rank_differential/token")
    return steps, -values


def _measured(result: Result) -> Series:
    """Derivative of the diffusion loss by the latents' scale: positive where gradient descent shrinks them."""
    return result.history.series("theory/scale_gradient/token")


def _predicted(result: Result) -> Series:
    """Its closed form at the measured standard deviations, at every probe."""
    record = scale_record(result, most=None)
    return (np.zeros(0, int), np.zeros(0)) if record is None else (record.steps, record.predicted.mean(1))


SIGNS: dict[str, Callable[[Result], Series]] = {
    "rank gap below 0": _gap,
    "rank differential below 0": _differential,
    "scale gradient above 0, measured": _measured,
    "scale gradient above 0, closed form": _predicted,
}
"""(trial) -> steps and values; a positive value indicates that the latents will lose scale or rank."""


@dataclass(frozen=True)
class Course:
    """Margin and signs of a trial over training."""

    steps: NDArray[Any]
    margins: Floats
    """At every probe."""
    crossed_at: int | None
    """First step of the unbroken run of margins below 1 that lasts to the end; None where it ends healthy."""
    slope: float | None
    """Change of log10 margin over 1,000 steps, least squares over the second half of the probes."""
    first: dict[str, int | None]
    """By sign: the step since which it was on until the crossing, or the end; None where it was off then."""
    ever: frozenset[str]
    """Signs that were on at any probe up to the crossing, or the end."""
    known: frozenset[str]
    """Signs that were measured."""

    @property
    def projected(self) -> float | None:
        """Step at which the line of `slope` through the last margin crosses 1; None if it rises or has crossed."""
        if self.crossed_at is not None or not self.slope or self.slope >= 0 or self.margins[-1] <= 1:
            return None
        return float(self.steps[-1] + _PER * np.log10(self.margins[-1]) / -self.slope)


def course(result: Result, control: Result, settings: ReportSettings) -> Course | None:
    """Margin and signs of a trial against its control; None without probes of both after the first."""
    steps, states = states_over_training(result, settings.probes)
    at, beside = states_over_training(control, settings.probes)
    if len(steps) < 2 or not at:
        return None
    found = []
    for step, state in zip(steps, states, strict=True):
        other = control_at(step, at, beside)
        assert other is not None
        found.append(margin(state, other, settings))
    margins = np.array(found)
    crossed_at = _first_of_last_run(np.array(steps), margins < 1)
    half = len(steps) // 2
    usable = len(steps) - half > 2 and bool(np.all(margins[half:] > 0))
    slope = float(np.polyfit(np.array(steps[half:]) / _PER, np.log10(margins[half:]), 1)[0]) if usable else None
    series = {name: sign(result) for name, sign in SIGNS.items()}
    until = steps[-1] if crossed_at is None else crossed_at
    on = {name: _states(*s, until, settings.probes) for name, s in series.items()}
    first = {name: _first_of_last_run(*s) for name, s in on.items()}
    ever = frozenset(name for name, (_, states) in on.items() if states.any())
    known = frozenset(name for name, (there, _) in series.items() if len(there) > 1)
    return Course(np.array(steps), margins, crossed_at, slope, first, ever, known)


def _first_of_last_run(steps: NDArray[Any], on: NDArray[np.bool_]) -> int | None:
    """The first step of the run of `on` that lasts to the end; None where the end is off."""
    if not len(on) or not on[-1]:
        return None
    off = np.flatnonzero(~on)
    return int(steps[off[-1] + 1 if len(off) else 0])


def _states(steps: NDArray[Any], values: Floats, until: int, probes: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Steps [S] up to `until`, and whether a sign is on there, by medians over the last probes; the first probe is before training."""
    inside = (steps <= until) & (steps > 0)
    steps, values = steps[inside], values[inside]
    return steps, running_median(values, probes) > 0


def courses(groups: list[Group], settings: ReportSettings) -> dict[str, dict[int, Course]]:
    """By group and seed, for finished trials with a finished control."""
    controls = controls_of([r for g in groups for r in g.results], settings)
    found: dict[str, dict[int, Course]] = {}
    for group in groups:
        for result in group.described:
            control = controls.get(cell_of(result))
            if control is None or result.variant == settings.control:
                continue
            if (made := course(result, control, settings)) is not None:
                found.setdefault(group.name, {})[result.seed] = made
    return found


def sign_table(groups: list[Group], settings: ReportSettings, looks: dict[str, str]) -> Table | None:
    """One row per variant: crossings, slopes of the other trials, and for each sign how often and how long it preceded a crossing; None without a control."""
    found = courses(groups, settings)
    if not found:
        return None
    rows, numbers, dots = [], [], []
    for group in (g for g in groups if g.name in found):
        made = found[group.name]
        crossed = [c for c in made.values() if c.crossed_at is not None]
        at = [c.crossed_at for c in crossed if c.crossed_at is not None]
        kept = [c for c in made.values() if c.crossed_at is None]
        slopes = [c.slope for c in kept if c.slope is not None]
        ahead = [c.projected for c in kept if c.projected is not None]
        later = f"{len(ahead)} would cross, the first at step {min(ahead):,.0f}" if ahead else ""
        row = [
            Cell(group.name),
            Cell(f"{len(crossed)} of {len(made)}", f"median step {np.median(at):,.0f}" if at else ""),
            Cell(shown(float(np.mean([c.margins[-1] for c in made.values()])), 2)),
            Cell(shown(float(np.mean(slopes)), 4, signed=True) if slopes else "-", later),
        ]
        row += [_sign_cell(name, crossed, kept) for name in SIGNS]
        rows.append(row)
        dots.append(looks[group.variant])
        numbers += [
            {"variant": group.variant, **group.point, "seed": seed, "crossed_at": c.crossed_at, "margin": float(c.margins[-1]), "slope": c.slope, "projected": c.projected}
            | {f"since: {name}": step for name, step in c.first.items()}
            | {f"ever: {name}": name in c.ever for name in SIGNS if name in c.known}
            for seed, c in made.items()
        ]  # fmt: skip
    header = ["variant", "crossed", "margin at the end", "change of log10 margin per 1,000 steps", *SIGNS]
    note = (
        "Margin: the smallest of std, capacity and ranks over the verdict's threshold against the control; below 1 the latents are "
        "shrunk or rank-collapsed. Its change is that of trials that did not cross, over the second half of training. Signs: in how "
        "many of the trials that crossed the sign was on, without a break, from an earlier probe until then, and for how long (median "
        "of these trials); in brackets, false alarms: in how many of the other trials it was on at any probe, and at the last one. "
        f"Medians of {settings.probes} probes."
    )
    return Table("early_signs", "Slow collapse and its early signs", header, rows, pd.DataFrame(numbers), note, dots)


def _sign_cell(name: str, crossed: list[Course], others: list[Course]) -> Cell:
    measured = [c for c in crossed if name in c.known]
    leads = [c.crossed_at - at for c in measured if c.crossed_at is not None and (at := c.first[name]) is not None]
    leads = [lead for lead in leads if lead > 0]
    others = [c for c in others if name in c.known]
    if not measured and not others:
        return Cell("-")
    ever, last = sum(name in c.ever for c in others), sum(c.first[name] is not None for c in others)
    text = f"{len(leads)} of {len(measured)}" if measured else "-"
    more = [f"{np.median(leads):,.0f} steps before"] if leads else []
    more += [f"({ever} of {len(others)} others, {last} at the end)"] if others else []
    return Cell(text, " ".join(more))
