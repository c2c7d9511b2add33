"""What predicts samples: VIV and capacity of finished trials beside their FID, healthy trials apart from collapsed ones.

VIV (arXiv 2606.03578) is the loss that the best velocity prediction of a Gaussian latent has, (pi/2) times the sum
of the latents' standard deviations, and published as "lower is better". Joint training lowers it by shrinking the
latents, so that it can hold among healthy trials alone. It is computed from the recorded spectra, which trials have
that were trained before the metric was recorded.
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
from dsd_lab.specs.report import ReportSettings

_MIN_TRIALS = 5
"""Trials from which a correlation is given."""
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
            verdict, fids = group.verdicts[result.seed], sorted(n for n in result.metrics if n.startswith("fid/"))
            if verdict is None or not fids:
                continue
            viv, capacity = viv_of(result, settings.probes), result.last_probes("latent/capacity_bits/token", settings.probes)  # fmt: skip
            fid = result.metrics[fids[0]]
            if viv is None or capacity is None or min(viv, capacity, fid) <= 0 or not math.isfinite(fid):
                continue
            key = result.record.data.name, fids[0]
            seen.add(result.id)
            found.setdefault(key, []).append(Sampled(group.variant, verdict, viv, capacity, fid))
    return found


@dataclass(frozen=True)
class Explained:
    """How far a predictor goes, in logarithms."""

    pearson: float | None
    """With log FID; None for several numbers at once, below `_MIN_TRIALS` trials, or without spread."""
    r2: float | None
    """Share of the variance of log FID that a least-squares line explains on the trials that it is fitted to."""
    left_out: float | None
    """The same where each variant is predicted by a line through the others; can be below 0. None with fewer than 3 variants."""


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
    if np.ptp(y) == 0 or not np.all(np.ptp(x[:, 1:], axis=0) > 0):
        return Explained(None, None, None)
    variants = np.array([t.variant for t in trials])
    pearson = float(np.corrcoef(x[:, 1], y)[0, 1]) if len(names) == 1 else None
    known = list(dict.fromkeys(variants))
    foreseen = np.empty(len(y))
    for variant in known if len(known) > 2 else []:
        held = variants == variant
        foreseen[held] = x[held] @ line(x[~held], y[~held])
    return Explained(pearson, _r2(y, x @ line(x, y)), _r2(y, foreseen) if len(known) > 2 else None)


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
        "VIV: (pi/2) times the sum of the standard deviations of the latent tokens, the least loss of a velocity prediction "
        "(arXiv 2606.03578; there a lower one means a lower FID, which is a positive correlation). Capacity: bits a token through "
        "unit noise. Both and FID as logarithms. R² of variants left out: each is predicted by a line through the others; below 0 "
        "it is worse than their mean."
    )
    return Table("viv", "What predicts FID", header, rows, pd.DataFrame(numbers), note)
