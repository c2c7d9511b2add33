"""Forecast collapse from how far the latents have changed after a share of the steps, and again at a later look."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_lab.home.history import Floats, History
from dsd_lab.home.spool import read_spool

LOOKS = (0.4, 0.7)
"""Shares of a trial's steps that forecasts use, one forecast per share. Latents that look collapsed at 20 % can recover."""
FORMAT = 3
_TINY = 1e-9
"""Smallest value whose logarithm is taken."""


def _change(series: tuple[NDArray[Any], Floats], until: int) -> float | None:
    """log10 of the latest value up to a step, divided by the first; None without two, or if one is not finite."""
    steps, values = series
    seen = values[steps <= until]
    if len(seen) < 2 or not np.isfinite(seen[[0, -1]]).all():
        return None
    return math.log10(max(float(seen[-1]), _TINY) / max(float(seen[0]), _TINY))


def _std(history: History, until: int) -> float | None:
    """Absolute: a scale can collapse by vanishing or by exploding."""
    change = _change(history.series("latent/variance"), until)
    return None if change is None else 0.5 * abs(change)


def _rank(history: History, until: int) -> float | None:
    return _change(history.series("latent/effective_rank/token"), until)


def _capacity(history: History, until: int) -> float | None:
    return _change(history.series("latent/capacity_bits/token"), until)


FEATURES: dict[str, Callable[[History, int], float | None]] = {
    "absolute change of log10 latent std": _std,
    "change of log10 effective rank, tokens": _rank,
    "change of log10 capacity": _capacity,
}
"""Measures of the verdict, relative to the first probe, which is before training."""


def seen_steps(steps: int, look: float = LOOKS[0]) -> int:
    """Number of first steps that a forecast uses."""
    return int(look * steps)


def features(history: History, steps: int, look: float = LOOKS[0]) -> list[float] | None:
    """Values of `FEATURES` over the first share `look` of a trial of so many steps; None where one was not recorded."""
    until = seen_steps(steps, look)
    found = [feature(history, until) for feature in FEATURES.values()]
    return None if any(v is None for v in found) else [float(v) for v in found if v is not None]


def early_history(spool: Path, until: int) -> History:
    """Metrics of a spool up to a step; the trial may still be running."""
    rows = [
        (entry.step, name, value)
        for entry in read_spool(spool)
        if entry.step <= until
        for name, value in entry.metrics.items()
    ]
    if not rows:
        return History.empty()
    steps, names, values = zip(*rows, strict=True)
    return History(np.array(steps), np.array(names, dtype=object), np.full(len(rows), -1), np.array(values))


@dataclass(frozen=True)
class Forecast:
    """Logistic regression on standardised features, for one look."""

    look: float
    """Share of a trial's steps that it sees."""
    mean: list[float]
    scale: list[float]
    weights: list[float]
    intercept: float

    def chance(self, seen: list[float]) -> float:
        """Probability of collapse, in [0, 1]."""
        x = (np.asarray(seen) - self.mean) / self.scale
        return float(1 / (1 + math.exp(-np.clip(x @ np.asarray(self.weights) + self.intercept, -500, 500))))


def as_json(forecasts: list[Forecast]) -> dict[str, Any]:
    """Forecasts, one per look, for a file."""
    return {"format": FORMAT, "features": list(FEATURES), "forecasts": [asdict(f) for f in forecasts]}


def from_json(content: dict[str, Any]) -> list[Forecast]:
    """Load forecasts from the result of `as_json`, the earliest look first.

    Raises:
        ValueError: they were made by another version of dsd-lab.
    """
    if (content.get("format"), content.get("features")) != (FORMAT, list(FEATURES)):
        raise ValueError("it was made by another version")
    return sorted((Forecast(**entry) for entry in content["forecasts"]), key=lambda f: f.look)
