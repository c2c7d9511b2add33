"""What the closed forms say of the end of a trial, with nothing learnt: one number each, judged as the learnt forecast is.

Positive: the latents are expected to shrink. From the spec alone the derivative is taken at a fixed scale below 1, where
a direction lies that is not among the strongest of normalised latents; from the first probe at the scales that the
encoder has before training; measured, it is the diffusion loss' own derivative. Per direction only the sign counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from dsd_lab.home.history import Floats
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.agreement import MIN_STD
from dsd_lab.report.statistics.forecast_judged import (
    Example,
    ForecastJudgement,
    See,
    examples_of,
    judge_forecast,
    seen_at,
)
from dsd_lab.report.statistics.theory import has_closed_form, scale_gradient
from dsd_lab.report.statistics.verdicts import judge, row_key
from dsd_lab.report.tables.rendering import Cell, Table, shown
from dsd_lab.runs.early_stopping import LOOKS, seen_steps
from dsd_lab.specs.report import ReportSettings

SCALE = 0.5
"""Standard deviation that the spec alone is asked at (ours)."""


def _from_spec(result: Result) -> list[float] | None:
    """Closed-form derivative at a std of `SCALE`, times the share of it that reaches the encoder."""
    if not has_closed_form(result.record.fields):
        return None
    share = result.trial.objective.encoder_gradient * result.trial.objective.diffusion_weight
    return [share * float(scale_gradient(result.record.fields, SCALE))]


def _signs(slopes: Floats, std: Floats) -> float | None:
    """Mean sign over the directions that the normaliser leaves."""
    alive = std > MIN_STD * std.max()
    return float(np.sign(slopes[alive]).mean()) if alive.any() and np.isfinite(slopes[alive]).all() else None


def _unreached(result: Result) -> bool:
    return result.trial.objective.noised == "detached" and result.trial.objective.target != "live"


def _at_start(result: Result) -> list[float] | None:
    """Signs of the closed form at the standard deviations of the first probe."""
    _, eigenvalues = result.history.spectrum("spectrum/token")
    if not len(eigenvalues) or not has_closed_form(result.record.fields):
        return None
    std = np.sqrt(eigenvalues[0])
    sign = _signs(scale_gradient(result.record.fields, std), std)
    return None if sign is None else [sign]


def _measured(look: float) -> See:
    def see(result: Result) -> list[float] | None:
        """Signs of the measured derivative at the last probe until a look, the first probe being before training."""
        if _unreached(result):
            return [0.0]
        steps, slopes = result.history.spectrum("spectrum/scale_gradient/token")
        at, std = result.history.spectrum("spectrum/scale_std/token")
        if not len(steps) or not np.array_equal(steps, at):
            return None
        last = int(np.searchsorted(steps, seen_steps(result.trial.training.steps, look), side="right")) - 1
        sign = _signs(slopes[last], std[last]) if last >= 0 else None
        return None if sign is None else [sign]

    return see


THEORY: dict[str, See] = {
    "closed form, from the spec alone": _from_spec,
    "closed form, at the first probe": _at_start,
    "measured derivative, at the first probe": _measured(0.0),
    "measured derivative, at the first look": _measured(LOOKS[0]),
    "measured derivative, at the second look": _measured(LOOKS[1]),
}
"""What is seen of a trial, by name."""
LEARNT: dict[str, See] = {f"learnt, at {look:.0%} of the steps": seen_at(look) for look in LOOKS}
"""The same of the learnt forecast, look by look."""
Sweep = tuple[str, list[Result], ReportSettings]
"""Name of the spec, its results, its thresholds."""


def all_examples(sweeps: Iterable[Sweep]) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Examples of all sweeps by what is seen of a trial, and how many trials recorded too little for it."""
    examples: dict[str, list[Example]] = {name: [] for name in LEARNT | THEORY}
    lacking = dict.fromkeys(examples, 0)
    for spec, results, settings in sweeps:
        verdicts = judge(results, settings)
        for name, see in (LEARNT | THEORY).items():
            found, less = examples_of(spec, results, [verdicts[row_key(r)] for r in results], see)
            examples[name] += found
            lacking[name] += less
    return examples, lacking


def judgements(examples: dict[str, list[Example]]) -> dict[str, tuple[ForecastJudgement, ForecastJudgement]]:
    """Each forecast with one spec, and with one data set, left out."""
    return {name: (judge_forecast(some), judge_forecast(some, by_data=True)) for name, some in examples.items()}


def forecast_table(sweeps: Iterable[Sweep]) -> Table:
    """One row a forecast: AUC and Brier score with one spec and with one data set left out, and calibration."""
    rows, numbers, said = [], [], list[str]()
    for name, (spec, data) in judgements(all_examples(sweeps)[0]).items():
        bins = "; ".join(f"{c.low:.0%} to {c.high:.0%}: {c.mean_chance:.0%} said, {c.collapsed:.0%} of {c.trials}" for c in spec.calibration)  # fmt: skip
        values = (spec.auc, data.auc, spec.brier, spec.brier_base)
        rows.append([Cell(name), Cell(str(spec.trials)), *(Cell("-" if v is None else shown(v, 3)) for v in values), Cell(bins or "-")])  # fmt: skip
        numbers.append({"forecast": name, "trials": spec.trials, "auc_spec_out": spec.auc, "auc_data_set_out": data.auc, "brier": spec.brier, "brier_base": spec.brier_base})  # fmt: skip
        said = said or list(dict.fromkeys((*spec.said, *data.said)))
    header = [
        "forecast",
        "trials",
        "AUC, a spec left out",
        "AUC, a data set left out",
        "Brier",
        "of the base rate",
        "calibration",
    ]
    note = (
        "Chance that latents end collapsed, by a logistic regression that the trials of the other specs (data sets) teach; closed forms "
        "and measured derivatives are one number each. " + " ".join(said)
    )
    return Table("forecasts", "Can collapse be told early?", header, rows, pd.DataFrame(numbers), note.strip())
