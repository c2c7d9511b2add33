"""Theory against measurement: derivatives with respect to the latents' scale, and rank gaps with the changes of rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dsd_lab.home.history import Floats
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import ANY, SHARE, Estimate, estimate
from dsd_lab.report.statistics.rank_lag import paired
from dsd_lab.report.statistics.theory import has_closed_form, scale_gradient
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell, shown
from dsd_lab.specs.metrics import RANK_GAP
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import reaches_encoder

_RANK = "latent/effective_rank/token"
MAX_PROBES = 40
"""Maximum number of probes that are compared per trial, evenly spread over training: the quadrature takes time."""
MIN_STD = 1e-3
"""Directions with a std below this fraction of the largest are removed by the normaliser, and are ignored."""
_MIN_TRIALS = 5
"""Minimum number of trials for a rank correlation."""

ASSUMED = (
    "The closed forms assume a denoiser frozen at the posterior mean of independent Gaussian directions with the measured standard "
    "deviations. A trained network is not frozen, is not that mean, and sees all tokens at once."
)


@dataclass(frozen=True)
class ScaleRecord:
    """A trial's derivatives of the diffusion loss with respect to the scale of K principal directions, at S probes."""

    steps: NDArray[Any]
    """[S]; the first is before training."""
    std: Floats
    """[S, K], descending."""
    measured: Floats
    """[S, K]."""
    predicted: Floats
    """[S, K]."""

    @property
    def alive(self) -> NDArray[Any]:
        """[S, K]: directions that the normaliser does not remove."""
        return self.std > MIN_STD * self.std[:, :1]


def scale_record(result: Result, most: int | None = MAX_PROBES) -> ScaleRecord | None:
    """Measured derivatives and closed forms of a trial at `most` probes, or at all; None if either is missing."""
    steps, measured = result.history.spectrum("spectrum/scale_gradient/token")
    at, std = result.history.spectrum("spectrum/scale_std/token")
    if not len(steps) or not np.array_equal(steps, at) or not result.description:
        return None
    if not has_closed_form(result.record.fields):
        return None
    kept = np.unique(np.linspace(0, len(steps) - 1, min(most or len(steps), len(steps))).round().astype(int))
    predicted = scale_gradient(result.record.fields, std[kept])
    return ScaleRecord(steps[kept], std[kept], measured[kept], predicted)


def sign_agreement(record: ScaleRecord) -> float | None:
    """Fraction of directions and probes after the first at which measured and predicted signs agree; None without any."""
    compared = record.alive[1:] & (record.predicted[1:] != 0)
    if not compared.any():
        return None
    same = np.sign(record.measured[1:]) == np.sign(record.predicted[1:])
    return float(same[compared].mean())


def gap_record(result: Result) -> tuple[Floats, Floats] | None:
    """Rank gaps (mean over bins of t) at probes i, and changes of effective rank from probe i + 1 to i + 2.

    A change that began at probe i would share that probe's rank with the gap (`rank_lag`). The first probe is before
    training and is ignored. None with fewer than four probes.
    """
    at, gap = result.history.mean_over(RANK_GAP)
    steps, rank = result.history.series(_RANK)
    return paired(gap, rank, 1) if len(steps) > 3 and np.array_equal(steps, at) else None


@dataclass(frozen=True)
class Agreement:
    """One trial's numbers of the table."""

    predicted: float | None
    measured: float | None
    """Means over directions; medians of the last probes."""
    before: float | None
    """Measured with respect to the scale of the encoder's output."""
    signs: float | None
    scale_change: float | None
    """log10 of the ratio of the std at the end to that at the second probe."""
    gap: float | None
    rank_change: float | None
    gap_signs: float | None
    """Fraction of probes after which the next change of rank has the sign of the gap."""


def agreement_of(result: Result, settings: ReportSettings) -> Agreement:
    """Theory and measurement of one trial."""
    record, gaps, last = scale_record(result), gap_record(result), settings.probes
    predicted = measured = signs = None
    if record is not None:
        predicted = _median(record.predicted.mean(1)[-last:])
        measured = _median(record.measured.mean(1)[-last:])
        signs = sign_agreement(record)
    elif has_closed_form(result.record.fields) and not reaches_encoder(result.trial.objective):
        predicted = 0.0
    later = result.history.mean_over(RANK_GAP)[1][1:]  # the first probe is before training
    gap = float(later.mean()) if len(later) else None
    gap_signs = None if gaps is None else float((np.sign(gaps[0]) == np.sign(gaps[1])).mean())
    std = _change(result, "latent/variance", last, np.log10)
    before = result.last_probes("theory/scale_gradient/token/pre", last)
    rank = _change(result, _RANK, last, np.asarray)
    return Agreement(predicted, measured, before, signs, None if std is None else std / 2, gap, rank, gap_signs)


def _median(values: Floats) -> float | None:
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None


def _change(result: Result, name: str, last: int, transform) -> float | None:  # type: ignore[no-untyped-def]
    """Median of the last probes minus the second probe, after `transform`; the metric must be positive."""
    _, values = result.history.series(name)
    if len(values) < 3 or not np.all(values > 0):
        return None
    return float(transform(np.median(values[-last:])) - transform(values[1]))


_COLUMNS: tuple[tuple[str, str, int, bool], ...] = (
    ("predicted", "d loss / d scale: closed form", 3, True),
    ("measured", "d loss / d scale: measured", 3, True),
    ("signs", "signs agree", 0, False),
    ("before", "measured before the normaliser", 3, True),
    ("scale_change", "log10 std, change", 2, True),
    ("gap", "rank gap, mean over training", 2, True),
    ("rank_change", "effective rank, tokens, change", 2, True),
    ("gap_signs", "rank follows the gap", 0, False),
)
"""Field of `Agreement`, label, digits, signed; fractions are shown in per cent."""


def theory_table(groups: list[Group], settings: ReportSettings, looks: dict[str, str]) -> Table | None:
    """One row per group with a diffusion loss; None if no trial has measured derivatives."""
    rows, numbers, dots = [], [], []
    trials: list[Agreement] = []
    for group in groups:
        diffused = [r for r in group.described if r.trial.objective.diffusion_weight > 0]
        found = {r.seed: agreement_of(r, settings) for r in diffused}
        if not found:
            continue
        trials += found.values()
        present = {name: _present(found, name) for name, *_ in _COLUMNS}
        within = {name: SHARE if share else ANY for name, _, _, share in _formats()}
        estimates = {name: estimate(list(v.values()), v, within[name]) for name, v in present.items()}
        rows.append([Cell(group.name), *(_cell(estimates[name], d, s, p) for name, d, s, p in _formats())])
        numbers += [
            {"variant": group.variant, **group.point, "quantity": name, **vars(value)}
            for name, value in estimates.items()
            if value is not None
        ]
        dots.append(looks[group.variant])
    if not any(t.measured is not None for t in trials):
        return None
    header = ["variant", *(label for _, label, _, _ in _COLUMNS)]
    frame = pd.DataFrame(numbers)
    return Table("theory", "Theory against measurement", header, rows, frame, _note(trials, settings), dots)


def _formats() -> list[tuple[str, int, bool, bool]]:
    return [(name, digits, signed, digits == 0) for name, _, digits, signed in _COLUMNS]


def _present(found: dict[int, Agreement], name: str) -> dict[int, float]:
    return {seed: value for seed, a in found.items() if (value := getattr(a, name)) is not None}


def _cell(value: Estimate | None, digits: int, signed: bool, share: bool) -> Cell:
    if value is None or not share:
        return estimate_cell(value, digits, signed)
    return Cell(f"{shown(100 * value.mean, 0)} %")


def _note(trials: list[Agreement], settings: ReportSettings) -> str:
    """Meaning of the columns, and agreement of theory and measurement."""
    both = [(t.predicted, t.measured) for t in trials if t.predicted and t.measured is not None]
    same = sum(np.sign(p) == np.sign(m) for p, m in both)
    note = (
        f"The sign of the mean derivative agrees in {same} of {len(both)} trials. "
        "Derivatives are of the unweighted diffusion loss per direction, with respect to a factor on the noised latents along a "
        f"principal direction; mean over directions, median of the last {settings.probes} probes. Positive: gradient descent shrinks them. {ASSUMED} "
        f"Signs agree: fraction of directions and probes after the first, of at most {MAX_PROBES} probes of a trial, evenly spread. Before the normaliser: a factor on the encoder's output. "
        "Changes are from the second probe to the end. Rank follows the gap: fraction of probes with a positive gap (target minus "
        "prediction) after which the effective rank rose from the next probe to the one after, or with a negative gap fell; ranks that "
        "only jitter give 50 %."
    )
    pairs = [(t.gap, t.rank_change) for t in trials if t.gap is not None and t.rank_change is not None]
    if len(pairs) >= _MIN_TRIALS and all(np.ptp(c) > 0 for c in np.transpose(pairs)):
        correlation = float(pd.DataFrame(pairs).corr("spearman").to_numpy()[0, 1])
        note += f" Over {len(pairs)} trials, Spearman's correlation of mean rank gap and change of rank is {correlation:+.2f}."
    return note
