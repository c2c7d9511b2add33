"""Statistics over seeds, on scipy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_FROM = 10
"""Seeds from which BCa bootstrap is used; below, a percentile bootstrap covers far less than it says."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; the bounds are None where one value gives none."""

    mean: float
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    n: int


def estimate(values: list[float]) -> Estimate | None:
    """Mean and interval of values over seeds: Student's t below 10 seeds, BCa bootstrap from 10 on.

    Raises:
        ValueError: a value is not finite; such a trial has diverged and has no place in a mean.
    """
    if not values:
        return None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"not finite: {values}")
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    sd = float(array.std(ddof=1))
    if sd == 0:
        return Estimate(mean, 0.0, mean, mean, n)
    if n < BOOTSTRAP_FROM:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
        return Estimate(mean, sd, mean - half, mean + half, n)
    found = stats.bootstrap((array,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=np.random.default_rng(0))
    return Estimate(mean, sd, float(found.confidence_interval.low), float(found.confidence_interval.high), n)


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion."""
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)
