"""Evaluates the forecast of collapse: the probability, after a share of training, that a trial's latents collapse.

The forecast is a logistic regression on three numbers, which can be interpreted and needs few trials. It is evaluated by
leaving out one spec, and one data set, because trials of one spec are similar. Trials without a diffusion loss have no
forecast. What the closed forms predict is evaluated in the same way, each number alone (`forecast_theory`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsd_lab.home.history import Floats
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.verdicts import HEALTHY, Judged
from dsd_lab.runs.early_stopping import LOOKS, Forecast, features

_MIN_SPECS = 2
_FEW_SPECS = 5
"""With fewer specs, a warning is added."""
_BINS = ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0))
"""Ranges of probabilities for calibration."""

# -- Examples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A finished trial: early features and outcome."""

    spec: str
    """Name of the spec, without the profile."""
    trial: str
    features: list[float]
    collapsed: bool
    data: str = ""
    """Name of its data set."""


See = Callable[[Result], list[float] | None]
"""What is seen of a trial; None where it was not recorded."""


def examples_of(spec: str, results: list[Result], judged: list[Judged], see: See) -> tuple[list[Example], int]:
    """Examples of a sweep, each trial once, and the number of trials with too few records for what is seen."""
    found: dict[str, Example] = {}
    lacking: set[str] = set()
    for result, verdict in zip(results, judged, strict=True):
        if verdict.verdict is None or result.trial.objective.diffusion_weight == 0:
            continue
        seen = see(result)
        if seen is None:
            lacking.add(result.id)
        else:
            collapsed, data = verdict.verdict != HEALTHY, result.record.data.name
            found.setdefault(result.id, Example(spec, result.id, seen, collapsed, data))
    return list(found.values()), len(lacking)


def seen_at(look: float) -> See:
    """The learnt forecast's numbers at a look."""
    return lambda result: features(result.history, result.trial.training.steps, look)


# -- The model ---------------------------------------------------------------------------------------


def fit(examples: list[Example], look: float = LOOKS[0]) -> Forecast | None:
    """Fit the forecast with scikit-learn's default L2 penalty of 1; None if all trials have the same outcome."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    once = list({e.trial: e for e in examples}.values())
    if len({e.collapsed for e in once}) < 2:
        return None
    table, ended = np.array([e.features for e in once]), [e.collapsed for e in once]
    scaler = StandardScaler().fit(table)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(table), ended)
    mean, scale, weights = ([float(v) for v in part] for part in (scaler.mean_, scaler.scale_, model.coef_[0]))
    return Forecast(look, mean, scale, weights, float(model.intercept_[0]))


# -- Evaluation --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Mean forecast within a range of probabilities, and the fraction of trials that collapsed."""

    low: float
    high: float
    trials: int
    mean_chance: float
    collapsed: float


@dataclass(frozen=True)
class ForecastJudgement:
    """Result of leave-one-out cross-validation over specs or data sets."""

    specs: list[str]
    """Specs, or data sets, that were left out and forecast."""
    trials: int
    """Distinct trials."""
    auc: float | None
    """Area under the ROC curve; None if all trials have the same outcome."""
    brier: float | None
    """Brier score of the forecast (mean squared error of the probability)."""
    brier_base: float | None
    """Brier score of the base rate: the fraction of collapsed trials in the other specs."""
    calibration: list[Calibration]
    said: list[str]
    """Sentences on what cannot be concluded."""


def judge_forecast(*looks: list[Example], by_data: bool = False) -> ForecastJudgement:
    """Forecast every spec, or every data set, from the others.

    A trial counts once: if several specs share it, by the mean of its chances. It is never in both training and test set.

    Args:
        looks: examples of one forecast, or of the forecasts at several looks. Of several, a trial's chance is the highest,
            because `sweep --stop-collapsed` stops a trial at the first look whose chance is high enough.
        by_data: leave out data sets instead of specs.
    """
    from sklearn.metrics import roc_auc_score

    kind = "data set" if by_data else "spec"
    every = [e for look in looks for e in look]
    names = list(dict.fromkeys(_part(e, by_data) for e in every))
    said: list[str] = []
    if len(names) < _MIN_SPECS:
        said.append(
            f"It cannot be evaluated: there are trials of {len(names)} {kind}{'s' * (len(names) != 1)}, and leaving one out needs {_MIN_SPECS}."
        )
        return ForecastJudgement([], 0, None, None, None, [], said)
    left_out = []
    forecasts: dict[str, list[tuple[float, float]]] = {}
    """By trial: chance and base rate, once per spec that was left out with it."""
    for name in names:
        ids = {e.trial for e in every if _part(e, by_data) == name}
        others = {e.trial: e.collapsed for e in every if e.trial not in ids}
        chances: dict[str, float] = {}
        for look in looks:
            forecast = fit([e for e in look if e.trial not in ids])
            if forecast is None:
                continue
            for e in look:
                if _part(e, by_data) == name:
                    chances[e.trial] = max(forecast.chance(e.features), chances.get(e.trial, 0.0))
        if not chances:
            said.append(f"{name} cannot be forecast: the other {kind}s have no further trials, or only one outcome.")
            continue
        left_out.append(name)
        for trial, chance in chances.items():
            forecasts.setdefault(trial, []).append((chance, sum(others.values()) / len(others)))
    if not left_out:
        return ForecastJudgement([], 0, None, None, None, [], said)
    ended = {e.trial: e.collapsed for e in every}
    x, bases = np.array([np.mean(found, axis=0) for found in forecasts.values()]).T
    y = np.array([float(ended[trial]) for trial in forecasts])
    both = len(set(y)) == 2
    if not both:
        said.append("All trials have the same outcome, so the AUC is not known.")
    if len(left_out) < _FEW_SPECS:
        said.append(f"Only {len(left_out)} {kind}s were left out: results may differ for a {kind} that is unlike them.")
    brier, base = float(np.mean((x - y) ** 2)), float(np.mean((bases - y) ** 2))
    if brier >= base:
        said.append("Its Brier score is no better than that of the base rate, so its probabilities are not reliable.")
    return ForecastJudgement(
        left_out,
        len(y),
        float(roc_auc_score(y, x)) if both else None,
        brier,
        base,
        _calibration(x, y),
        said,
    )


def _part(example: Example, by_data: bool) -> str:
    return example.data if by_data else example.spec


def _calibration(x: Floats, y: Floats) -> list[Calibration]:
    found = []
    for low, high in _BINS:
        inside = (x >= low) & ((x < high) | (high == 1.0))
        if inside.any():
            found.append(Calibration(low, high, int(inside.sum()), float(x[inside].mean()), float(y[inside].mean())))
    return found
