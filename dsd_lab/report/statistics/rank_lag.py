"""Does the rank differential say where the rank goes? Signals at a probe against the change of rank after a lag.

Zhuo et al. (arXiv 2303.02387) have the target's representation pull the online one up where the predictor's output has
the lower rank. So a differential (target minus prediction, at the training times) should go with a rise of the online
rank, at once or after the memory of the EMA copy, and direction by direction what the predictor lets through should
grow less than what it holds back. Correlations are within trials, over probes: trials that differ in their mean rank
would show a correlation where nothing follows from anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell

LAGS = (1, 2, 4, 8)
"""Probes between a signal and the end of the change that it is compared with."""
_MIN_PAIRS = 6
"""Pairs of probes from which a trial has a correlation."""
_WITHIN = (-1.0, 1.0)
Pairs = tuple[Floats, Floats]
"""Signals and changes, [P] each."""


def _ranks(result: Result, name: str, lag: int) -> Pairs:
    """A signal that is one number a probe, beside the change of the tokens' effective rank; the first probe is before training."""
    at, rank = result.history.series("latent/effective_rank/token")
    steps, signal = result.history.series(name)
    if not len(steps) or not np.array_equal(at, steps) or len(at) <= lag + 1:
        return np.zeros(0), np.zeros(0)
    return signal[1 : len(signal) - lag], rank[1 + lag :] - rank[1 : len(rank) - lag]


def _gap(result: Result, lag: int) -> Pairs:
    bins = [_ranks(result, f"rank_gap/t{b}", lag) for b in range(result.trial.probe.t_bins)]
    known = [pair for pair in bins if len(pair[0])]
    return (np.mean([s for s, _ in known], axis=0), known[0][1]) if known else (np.zeros(0), np.zeros(0))


def _directions(result: Result, lag: int) -> Pairs:
    """By direction: log of what the predictor holds back, and the growth of the direction, each less its mean over directions."""
    at, target = result.history.spectrum("spectrum/rank_differential/target/token")
    _, through = result.history.spectrum("spectrum/rank_differential/prediction/token")
    steps, eigenvalues = result.history.spectrum("spectrum/token")
    if not len(at) or not np.array_equal(at, steps) or len(at) <= lag + 1:
        return np.zeros(0), np.zeros(0)
    count = min(target.shape[1], eigenvalues.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        held = np.log(target[:, :count]) - np.log(through[:, :count])
        size = 0.5 * np.log(eigenvalues[:, :count])
        signal, change = held[1 : len(at) - lag], size[1 + lag :] - size[1 : len(at) - lag]
    usable = np.isfinite(signal) & np.isfinite(change)
    signal, change = (np.where(usable, part, np.nan) for part in (signal, change))
    kept = usable.sum(1) > 1
    signal, change = (part[kept] - np.nanmean(part[kept], axis=1, keepdims=True) for part in (signal, change))
    flat = np.isfinite(signal)
    return signal[flat], change[flat]


SIGNALS: dict[str, Callable[[Result, int], Pairs]] = {
    "rank gap, mean over t": _gap,
    "rank differential, training times": lambda r, lag: _ranks(r, "theory/rank_differential/token", lag),
    "target minus online rank": lambda r, lag: _ranks(r, "theory/rank_differential/online", lag),
    "by direction: what the predictor holds back": _directions,
}
"""(trial, lag) -> the signal and what follows; the theory has a positive correlation."""


def correlation(pairs: Pairs) -> float | None:
    """Spearman's; None with few pairs or without spread."""
    if len(pairs[0]) < _MIN_PAIRS or not all(np.isfinite(part).all() and np.ptp(part) > 0 for part in pairs):
        return None
    found = float(pd.DataFrame(np.transpose(pairs)).corr("spearman").to_numpy()[0, 1])
    return found if math.isfinite(found) else None


def lag_table(groups: list[Group], reached: bool = True) -> Table | None:
    """One row a signal, one column a lag: mean over trials of the correlation within a trial; None where none has one.

    Args:
        groups: of any sweeps.
        reached: only trials whose diffusion loss reaches the encoder; elsewhere nothing follows from its prediction.
    """
    trials = {r.id: r for g in groups for r in g.described if r.trial.objective.diffusion_weight > 0}
    if reached:
        trials = {k: r for k, r in trials.items() if r.trial.objective.noised == "live"}
    rows, numbers = [], []
    told: list[str] = []
    for name, signal in SIGNALS.items():
        found: dict[int, Estimate | None] = {}
        for lag in LAGS:
            values = [c for r in trials.values() if (c := correlation(signal(r, lag))) is not None]
            found[lag] = estimate(values, within=_WITHIN)
            if (made := found[lag]) is not None:
                numbers.append({"signal": name, "lag": lag, "trials": made.n, **vars(made)})
        if not any(found.values()):
            continue
        rows.append([Cell(name), *(estimate_cell(e, 2, signed=True) for e in found.values())])
        up = [lag for lag, e in found.items() if e is not None and e.excludes_zero and e.mean > 0]
        down = [lag for lag, e in found.items() if e is not None and e.excludes_zero and e.mean < 0]
        told += [
            f"{name}: as the theory has it at lags {_listed(up) or 'none'}, against it at {_listed(down) or 'none'}."
        ]
    if not rows:
        return None
    note = (
        "Spearman's correlation between a signal at a probe and the change of the tokens' effective rank (by direction: of the direction's "
        "log std less the mean) until so many probes later, within a trial; mean over trials with a 95 % interval. Probes of a trial are not "
        "independent, trials are. " + " ".join(told)
    )
    return Table("rank_lag", "Does rank follow the rank differential?", ["signal", *(f"lag {lag}" for lag in LAGS)], rows, pd.DataFrame(numbers), note)  # fmt: skip


def _listed(lags: list[int]) -> str:
    return ", ".join(map(str, lags))
