"""Forecast collapse from the first steps of a trial, again at later looks: some trials collapse late."""

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
from dsd_lab.specs.metrics import RANK_GAP
from dsd_lab.specs.trial import Trial, reaches_encoder

LOOKS = (0.05, 0.15, 0.4, 0.7)
"""Shares of a trial's steps that forecasts use, one forecast per share."""
FORMAT = 2


def _last(series: tuple[NDArray[Any], Floats], until: int) -> float | None:
    """The latest value up to a step; None without one, or if it is not finite."""
    steps, values = series
    seen = values[steps <= until]
    return float(seen[-1]) if len(seen) and math.isfinite(seen[-1]) else None


def _log_std(history: History, fields: Trial, until: int) -> float | None:
    variance = _last(history.series("latent/variance"), until)
    return 0.5 * math.log10(variance) if variance else None


def _scale_gradient(history: History, fields: Trial, until: int) -> float | None:
    """asinh of the measured derivative; 0 where the loss does not train the encoder."""
    if not reaches_encoder(fields.objective):
        return 0.0
    value = _last(history.series("theory/scale_gradient/token"), until)
    return None if value is None else math.asinh(10 * value)


def _rank_gap(history: History, fields: Trial, until: int) -> float | None:
    return _last(history.mean_over(RANK_GAP), until)


def _log_loss(history: History, fields: Trial, until: int) -> float | None:
    loss = _last(history.series("train/diffusion"), until)
    return math.log10(loss) if loss else None


FEATURES: dict[str, Callable[[History, Trial, int], float | None]] = {
    "log10 latent std": _log_std,
    "derivative of the diffusion loss by the latents' scale": _scale_gradient,
    "rank gap": _rank_gap,
    "log10 diffusion loss": _log_loss,
}


def seen_steps(steps: int, look: float = LOOKS[0]) -> int:
    """Number of first steps that a forecast uses."""
    return int(look * steps)


def features(history: History, fields: Trial, look: float = LOOKS[0]) -> list[float] | None:
    """Values of `FEATURES` over the first share `look` of a trial; None where one was not recorded."""
    until = seen_steps(fields.training.steps, look)
    found = [feature(history, fields, until) for feature in FEATURES.values()]
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
