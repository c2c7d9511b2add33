"""Does the rank follow the rank differential? Signals at a probe against later changes of rank.

Zhuo et al. (arXiv 2303.02387) have the target's representation pull the online one up where the predictor's output has
the lower rank. A differential (target minus prediction, at the training times) should then go with a rise of the online
rank, at once or after the memory of the EMA copy, and directions that the predictor holds back should grow more than
those that it lets through.

A signal at probe i contains the rank that was measured there, or one close to it. A change that begins at probe i would
contain the same number with the other sign, and ranks that only jitter would give a correlation of -0.7 or +0.7. Changes
therefore begin at probe i + 1. Correlations are within trials, because trials that differ in their mean rank would show
a correlation between trials where nothing follows from anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.metrics import RANK_GAP
from dsd_lab.specs.trial import reaches_encoder

LAGS = (1, 2, 4, 8)
"""Probes over which a change is measured; it begins one probe after the signal."""
_MIN_PAIRS = 6
"""Minimum number of pairs of probes for a correlation."""
_WITHIN = (-1.0, 1.0)
Pairs = tuple[Floats, Floats]
"""Signals and changes, [P] each."""
_NONE: Pairs = (np.zeros(0), np.zeros(0))


def paired(signal: Floats, level: Floats, lag: int) -> Pairs:
    """Signals [P, ...] at probes i, and changes [P, ...] of a level from probe i + 1 to probe i + 1 + `lag`.

    Args:
        signal: at S probes, [S, ...].
        level: at the same probes. The first probe is before training and is not used.
        lag: at least 1.
    """
    after = level[2:]
    return signal[1 : max(len(signal) - 1 - lag, 1)], after[lag:] - after[: max(len(after) - lag, 0)]


def _ranks(result: Result, series: tuple[NDArray[np.int64], Floats], lag: int) -> Pairs:
    """A signal of one number per probe, and the change of the tokens' effective rank."""
    at, rank = result.history.series("latent/effective_rank/token")
    steps, signal = series
    return paired(signal, rank, lag) if len(steps) and np.array_equal(at, steps) else _NONE


def _directions(result: Result, lag: int) -> Pairs:
    """By direction: log of what the predictor holds back, and growth of the direction, each minus its mean over directions."""
    at, target = result.history.spectrum("spectrum/rank_differential/target/token")
    _, through = result.history.spectrum("spectrum/rank_differential/prediction/token")
    steps, eigenvalues = result.history.spectrum("spectrum/token")
    if not len(at) or not np.array_equal(at, steps):
        return _NONE
    count = min(target.shape[1], eigenvalues.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.log(target[:, :count]) - np.log(through[:, :count])
        signal, change = paired(held, 0.5 * np.log(eigenvalues[:, :count]), lag)
    usable = np.isfinite(signal) & np.isfinite(change)
    signal, change = (np.where(usable, part, np.nan) for part in (signal, change))
    kept = usable.sum(1) > 1
    signal, change = (part[kept] - np.nanmean(part[kept], axis=1, keepdims=True) for part in (signal, change))
    flat = np.isfinite(signal)
    return signal[flat], change[flat]


SIGNALS: dict[str, Callable[[Result, int], Pairs]] = {
    "rank gap, mean over t": lambda r, lag: _ranks(r, r.history.mean_over(RANK_GAP), lag),
    "rank differential, training times": lambda r, lag: _ranks(r, r.history.series("theory/rank_differential/token"), lag),
    "target minus online rank": lambda r, lag: _ranks(r, r.history.series("theory/rank_differential/online"), lag),
    "by direction: what the predictor holds back": _directions,
}  # fmt: skip
"""(trial, lag) -> signals and later changes; the theory predicts a positive correlation."""


def correlation(pairs: Pairs) -> float | None:
    """Spearman's; None with few pairs or without spread."""
    if len(pairs[0]) < _MIN_PAIRS or not all(np.isfinite(part).all() and np.ptp(part) > 0 for part in pairs):
        return None
    found = float(pd.DataFrame(np.transpose(pairs)).corr("spearman").to_numpy()[0, 1])
    return found if math.isfinite(found) else None


def lag_table(groups: list[Group], reached: bool = True) -> Table | None:
    """One row per signal, one column per lag: mean over trials of the correlation within a trial; None without any.

    Args:
        groups: of any sweeps; a trial of several sweeps counts once.
        reached: only trials whose diffusion loss reaches the encoder; elsewhere its prediction cannot drive the rank.
    """
    trials = {r.id: r for g in groups for r in g.described if r.trial.objective.diffusion_weight > 0}
    if reached:
        trials = {k: r for k, r in trials.items() if reaches_encoder(r.trial.objective)}
    rows, numbers = [], []
    for name, signal in SIGNALS.items():
        found: dict[int, Estimate | None] = {}
        for lag in LAGS:
            values = [c for r in trials.values() if (c := correlation(signal(r, lag))) is not None]
            found[lag] = estimate(values, within=_WITHIN)
            if (made := found[lag]) is not None:
                numbers.append({"signal": name, "lag": lag, "trials": made.n, **vars(made)})
        if any(found.values()):
            rows.append([Cell(name), *(_cell(e) for e in found.values())])
    if not rows:
        return None
    note = (
        "Spearman's correlation, within a trial, between a signal at a probe and the later change of the tokens' effective rank "
        "(by direction: of the direction's log std, minus the mean over directions). The change begins at the next probe, so that "
        "it shares no measurement with the signal, and lasts as many probes as the lag. Mean over trials with a 95 % interval; n: "
        "trials. The theory predicts positive values. A correlation is no cause: a trend in both gives one too."
    )
    return Table("rank_lag", "Does rank follow the rank differential?", ["signal", *(f"lag {lag}" for lag in LAGS)], rows, pd.DataFrame(numbers), note)  # fmt: skip


def _cell(value: Estimate | None) -> Cell:
    return estimate_cell(value, 2, signed=True, more="" if value is None else f"n {value.n}")
