"""Forecasts of collapse by the closed forms and by measured derivatives, evaluated in the same way as the learnt forecast.

Each is one number; positive: the latents are expected to shrink. From the spec alone, it is the derivative at a fixed
std below 1, as weaker directions of normalised latents have. At the first probe, it is the closed form at the standard
deviations before training. Measured, it is the derivative of the diffusion loss itself. Of directions, only signs count.

Forecasts are compared on the trials that all of them can forecast: AUCs over different trials are not comparable.
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
from dsd_lab.specs.trial import reaches_encoder

SCALE = 0.5
"""Standard deviation at which the derivative is taken from the spec alone (ours)."""


def _from_spec(result: Result) -> list[float] | None:
    """Closed-form derivative at a std of `SCALE`, times the fraction of it that reaches the encoder."""
    if not has_closed_form(result.record.fields):
        return None
    share = result.trial.objective.encoder_gradient * result.trial.objective.diffusion_weight
    return [share * float(scale_gradient(result.record.fields, SCALE))]


def _signs(slopes: Floats, std: Floats) -> float | None:
    """Mean sign over the directions that the normaliser leaves."""
    alive = std > MIN_STD * std.max()
    return float(np.sign(slopes[alive]).mean()) if alive.any() and np.isfinite(slopes[alive]).all() else None


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
        """Signs of the measured derivative at the last probe up to a look; the first probe is before training."""
        if not reaches_encoder(result.trial.objective):
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
    **{f"measured derivative, at {look:.0%} of the steps": _measured(look) for look in (0.15, LOOKS[0])},
}
"""Name -> what is seen of a trial."""
LEARNT: dict[str, See] = {f"learnt, at {look:.0%} of the steps": seen_at(look) for look in LOOKS}
"""The same for the learnt forecast, one per look."""
STOPPER = "learnt, highest chance of all looks"
"""What `sweep --stop-collapsed` does: a trial is stopped at any look whose chance is high enough."""
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


def compared(examples: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The examples of the trials that every forecast has."""
    common = set.intersection(*({e.trial for e in some} for some in examples.values()))
    return {name: [e for e in some if e.trial in common] for name, some in examples.items()}


Judgements = tuple[ForecastJudgement, ForecastJudgement]
"""With one spec, and with one data set, left out."""


def judge_stopper(examples: dict[str, list[Example]]) -> Judgements:
    """Evaluate what early stopping does with the learnt forecasts."""
    looks = [examples[name] for name in LEARNT]
    return judge_forecast(*looks), judge_forecast(*looks, by_data=True)


def judgements(examples: dict[str, list[Example]]) -> dict[str, Judgements]:
    """Every forecast, and early stopping by the learnt ones, over the trials that all of them have."""
    same = compared(examples)
    each = {name: (judge_forecast(some), judge_forecast(some, by_data=True)) for name, some in same.items()}
    return {STOPPER: judge_stopper(same), **each}


def remarks(judged: dict[str, Judgements]) -> list[str]:
    """What cannot be concluded, each sentence with the forecasts that it is about, unless it is about all."""
    about: dict[str, list[str]] = {}
    for name, pair in judged.items():
        for line in dict.fromkeys(line for judgement in pair for line in judgement.said):
            about.setdefault(line, []).append(name)
    return [line if len(names) == len(judged) else f"{'; '.join(names)}: {line}" for line, names in about.items()]


def forecast_table(sweeps: Iterable[Sweep]) -> Table:
    """One row per forecast: AUC and Brier score with one spec and with one data set left out, and calibration."""
    rows, numbers = [], []
    judged = judgements(all_examples(sweeps)[0])
    for name, (spec, data) in judged.items():
        bins = "; ".join(f"{c.low:.0%} to {c.high:.0%}: mean {c.mean_chance:.0%}, {c.collapsed:.0%} of {c.trials} collapsed" for c in spec.calibration)  # fmt: skip
        values = (spec.auc, data.auc, spec.brier, spec.brier_base)
        rows.append([Cell(name), Cell(str(spec.trials)), *(Cell("-" if v is None else shown(v, 3)) for v in values), Cell(bins or "-")])  # fmt: skip
        numbers.append({"forecast": name, "trials": spec.trials, "auc_spec_out": spec.auc, "auc_data_set_out": data.auc, "brier": spec.brier, "brier_base": spec.brier_base})  # fmt: skip
    header = [
        "forecast",
        "trials",
        "AUC, spec left out",
        "AUC, data set left out",
        "Brier score",
        "Brier score of the base rate",
        "calibration",
    ]
    note = (
        "Probability that a trial's latents end collapsed, by a logistic regression on the trials of the other specs (data sets). "
        "Closed forms and measured derivatives are one number each. All rows are over the trials that every forecast has. "
        + " ".join(remarks(judged))
    )
    return Table("forecasts", "Can collapse be forecast early?", header, rows, pd.DataFrame(numbers), note.strip())
