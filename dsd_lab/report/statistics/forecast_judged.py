"""Forecast: from the first 5 % of a trial's metrics, the chance that its latents end collapsed.

A logistic regression on four numbers, so that it can be read and few trials suffice. It is judged by
leaving one spec out: trials of a spec are as alike as siblings, and a forecast that has seen one has
seen the others. Trials without a diffusion loss are not forecast; nothing pulls at their latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsd_lab.home.history import Floats
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.verdicts import HEALTHY, Judged
from dsd_lab.runs.early_stopping import FEATURES, Forecast, features

_FEWEST_SPECS = 2
_FEW_SPECS = 5
"""Below it, a judgement over specs is a handful of cases, and says so."""
_BINS = ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0))
"""Ranges of chances that calibration is told for."""


# -- What is seen ------------------------------------------------------------------------------------


# -- Trials at hand ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A finished trial: what was seen of it early, and how it ended."""

    spec: str
    """Name of the spec, whatever the profile."""
    trial: str
    features: list[float]
    collapsed: bool


def examples_of(spec: str, results: list[Result], judged: list[Judged]) -> tuple[list[Example], int]:
    """Examples of a sweep, each trial once, and how many trials with a verdict recorded too little in the window."""
    found: dict[str, Example] = {}
    lacking: set[str] = set()
    for result, verdict in zip(results, judged, strict=True):
        if verdict.verdict is None or result.trial.objective.diffusion_weight == 0:
            continue
        seen = features(result.history, result.trial)
        if seen is None:
            lacking.add(result.id)
        else:
            found.setdefault(result.id, Example(spec, result.id, seen, verdict.verdict != HEALTHY))
    return list(found.values()), len(lacking)


# -- The model ---------------------------------------------------------------------------------------


def fit(examples: list[Example]) -> Forecast | None:
    """The forecast that trials teach, L2 penalty 1 as scikit-learn's default; None where all ended alike."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    once = list({e.trial: e for e in examples}.values())
    if len({e.collapsed for e in once}) < 2:
        return None
    table, ended = np.array([e.features for e in once]), [e.collapsed for e in once]
    scaler = StandardScaler().fit(table)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(table), ended)
    mean, scale, weights = ([float(v) for v in part] for part in (scaler.mean_, scaler.scale_, model.coef_[0]))
    return Forecast(list(FEATURES), mean, scale, weights, float(model.intercept_[0]))


# -- How good it is ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Forecasts within a range of chances, beside how often latents collapsed."""

    low: float
    high: float
    trials: int
    mean_chance: float
    collapsed: float


@dataclass(frozen=True)
class ForecastJudgement:
    """What leaving one spec out says of the forecast."""

    specs: list[str]
    """That were left out in turn and could be forecast."""
    trials: int
    auc: float | None
    """Chance that a collapsed trial is given a higher chance than a healthy one; None where all ended alike."""
    brier: float | None
    """Mean squared error of the chance."""
    brier_base: float | None
    """The same of the share of collapsed trials in the other specs, which sees nothing of the trial."""
    calibration: list[Calibration]
    said: list[str]
    """What cannot be concluded, in words."""


def judge_forecast(examples: list[Example]) -> ForecastJudgement:
    """Forecast every spec from the others; trials that two specs share are never on both sides."""
    from sklearn.metrics import roc_auc_score

    names = list(dict.fromkeys(e.spec for e in examples))
    said: list[str] = []
    if len(names) < _FEWEST_SPECS:
        said.append(
            f"It cannot be judged: trials of {len(names)} spec{'s' * (len(names) != 1)} are at hand, and leaving one out takes {_FEWEST_SPECS}."
        )
        return ForecastJudgement([], 0, None, None, None, [], said)
    left_out, chances, bases, ended = [], [], [], []
    for name in names:
        held = [e for e in examples if e.spec == name]
        ids = {e.trial for e in held}
        others = list({e.trial: e for e in examples if e.trial not in ids}.values())
        forecast = fit(others)
        if forecast is None:
            said.append(f"{name} cannot be forecast: the trials of the other specs all ended alike, or are its own.")
            continue
        left_out.append(name)
        chances += [forecast.chance(e.features) for e in held]
        bases += [sum(e.collapsed for e in others) / len(others)] * len(held)
        ended += [e.collapsed for e in held]
    if not left_out:
        return ForecastJudgement([], 0, None, None, None, [], said)
    x, y = np.array(chances), np.array(ended, dtype=float)
    both = len(set(ended)) == 2
    if not both:
        said.append("All trials that were forecast ended alike, so how well they are told apart is not known.")
    if len(left_out) < _FEW_SPECS:
        said.append(f"{len(left_out)} specs are few: this says little of a spec that is unlike them.")
    brier, base = float(np.mean((x - y) ** 2)), float(np.mean((np.array(bases) - y) ** 2))
    if brier >= base:
        said.append("Its Brier score is no better than the base rate's, so its chances are not to be relied on.")
    return ForecastJudgement(
        left_out,
        len(y),
        float(roc_auc_score(y, x)) if both else None,
        brier,
        base,
        _calibration(x, y),
        said,
    )


def _calibration(x: Floats, y: Floats) -> list[Calibration]:
    found = []
    for low, high in _BINS:
        inside = (x >= low) & ((x < high) | (high == 1.0))
        if inside.any():
            found.append(Calibration(low, high, int(inside.sum()), float(x[inside].mean()), float(y[inside].mean())))
    return found
