"""What predicts samples: VIV and capacity of finished trials against their FID, for healthy trials and for all.

VIV (arXiv 2606.03578) is the lowest loss that a velocity prediction of a Gaussian latent can have: (pi/2) times the sum
of the latents' standard deviations. It is published as "lower is better" for healthy tokenizers; latents that shrink have
a lower VIV too. It is computed from the recorded spectra, which all probed trials have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.verdicts import HEALTHY
from dsd_lab.report.tables.rendering import Cell, Table, shown
from dsd_lab.specs.metrics import fids
from dsd_lab.specs.report import ReportSettings

_MIN_TRIALS = 5
"""Minimum number of trials for a correlation."""
_MIN_VARIANTS = 3
"""Minimum number of variants, so that a fit that leaves one out has seen two."""
PREDICTORS: dict[str, tuple[str, ...]] = {"VIV": ("viv",), "capacity": ("capacity",), "VIV and capacity": ("viv", "capacity")}  # fmt: skip
"""Fields of `Sampled` by the name that they have together."""


@dataclass(frozen=True)
class Sampled:
    """A finished trial with a verdict and a FID."""

    variant: str
    verdict: str
    viv: float
    """(pi/2) sum of the token covariance's standard deviations, median of the last probes."""
    capacity: float
    """Bits a token."""
    fid: float

    @property
    def healthy(self) -> bool:
        return self.verdict == HEALTHY


def viv_of(result: Result, probes: int) -> float | None:
    """VIV of a trial's latent tokens, median of the last probes; None where they were not probed or are not finite."""
    _, spectrum = result.history.spectrum("spectrum/token")
    last = math.pi / 2 * np.sqrt(spectrum[-probes:]).sum(1)
    middle = float(np.median(last)) if len(last) else math.nan
    return middle if math.isfinite(middle) else None


def sampled(groups: Sequence[Group], settings: ReportSettings) -> dict[tuple[str, str], list[Sampled]]:
    """Trials by the name of their data and of the first FID that they have: two kinds of FID share no axis."""
    found: dict[tuple[str, str], list[Sampled]] = {}
    seen: set[str] = set()  # two sweeps may share a trial
    for group in groups:
        for result in group.described:
            if result.id in seen:
                continue
            verdict, kinds = group.verdicts[result.seed], fids(result.metrics)
            if verdict is None or not kinds:
                continue
            viv, capacity = viv_of(result, settings.probes), result.last_probes("latent/capacity_bits/token", settings.probes)  # fmt: skip
            fid = result.metrics[kinds[0]]
            if viv is None or capacity is None or min(viv, capacity, fid) <= 0 or not math.isfinite(fid):
                continue
            key = result.record.data.name, kinds[0]
            seen.add(result.id)
            found.setdefault(key, []).append(Sampled(group.variant, verdict, viv, capacity, fid))
    return found


@dataclass(frozen=True)
class Explained:
    """How well a predictor explains FID, in logarithms."""

    pearson: float | None
    """With log FID; None for several numbers at once, below `_MIN_TRIALS` trials, or without spread."""
    r2: float | None
    """Fraction of the variance of log FID that least squares explains on the trials of the fit."""
    left_out: float | None
    """R² where each variant is predicted from the others; can be below 0. None with fewer than 3 variants, or if the others do not determine a fit."""


def table_of(trials: Sequence[Sampled], names: Sequence[str]) -> tuple[Floats, Floats]:
    """Logarithms of the predictors [S, 1 + K], the first column ones, and of the FIDs [S]."""
    x = np.array([[1.0, *(math.log10(getattr(t, name)) for name in names)] for t in trials])
    return x, np.array([math.log10(t.fid) for t in trials])


def line(x: Floats, y: Floats) -> Floats:
    """Coefficients [1 + K] of least squares."""
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def explained(trials: Sequence[Sampled], names: Sequence[str]) -> Explained:
    """A predictor, of one or several numbers, on these trials."""
    if len(trials) < _MIN_TRIALS:
        return Explained(None, None, None)
    x, y = table_of(trials, names)
    if np.ptp(y) == 0 or not determined(x):
        return Explained(None, None, None)
    pearson = float(np.corrcoef(x[:, 1], y)[0, 1]) if len(names) == 1 else None
    return Explained(pearson, _r2(y, x @ line(x, y)), _left_out(np.array([t.variant for t in trials]), x, y))


def _left_out(variants: NDArray[np.str_], x: Floats, y: Floats) -> float | None:
    """R² of predicting each variant by a fit to the others."""
    known, predicted = list(dict.fromkeys(variants)), np.empty(len(y))
    for variant in known:
        held = variants == variant
        if len(known) < _MIN_VARIANTS or not determined(x[~held]):
            return None
        predicted[held] = x[held] @ line(x[~held], y[~held])
    return _r2(y, predicted)


def determined(x: Floats) -> bool:
    """Whether predictors [S, 1 + K] determine a least-squares fit, with at least one trial to spare."""
    return bool(len(x) > x.shape[1] == int(np.linalg.matrix_rank(x)))


def _r2(y: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(1 - np.square(y - found).sum() / np.square(y - y.mean()).sum())


def viv_table(groups: Sequence[Group], settings: ReportSettings) -> Table | None:
    """One row a predictor and set of trials; None where no trial has a verdict and a FID, or all are few."""
    rows, numbers = [], []
    for (data, fid), trials in sampled(groups, settings).items():
        sets = {"healthy": [t for t in trials if t.healthy], "all": trials}
        for name, fields in PREDICTORS.items():
            cells = [Cell(name, f"{data}, {fid}")]
            for kind, some in sets.items():
                found = explained(some, fields)
                cells += [Cell("-" if v is None else shown(v, 2, signed=True)) for v in (found.pearson, found.left_out)]
                numbers.append({"data": data, "fid": fid, "predictor": name, "of": kind, "trials": len(some), **vars(found)})  # fmt: skip
            rows.append(cells)
    if not any(n["r2"] is not None for n in numbers):
        return None
    header = ["predictor of log FID"]
    header += [f"{kind} trials: {what}" for kind in ("healthy", "all") for what in ("Pearson", "R², variants left out")]
    note = (
        "VIV: (pi/2) times the sum of the standard deviations of the latent tokens, the lowest loss of a velocity prediction "
        "(arXiv 2606.03578; there a lower VIV means a lower FID, which is a positive correlation). Capacity: bits per token through "
        "noise of variance 1. Both and FID as logarithms. Pearson's correlation is over trials; seeds of a variant are not "
        "independent of each other. R², variants left out: each variant is predicted by a least-squares fit to the others; below "
        "0 the fit is worse than the mean FID."
    )
    return Table("viv", "What predicts FID", header, rows, pd.DataFrame(numbers), note)
