"""Collapse verdicts of finished trials, computed from raw values for every report and not stored.

The rules are in `latent_state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dsd_lab.report.results import Result
from dsd_lab.report.statistics.latent_state import HEALTHY as HEALTHY
from dsd_lab.report.statistics.latent_state import (
    MEASURES,
    PATCHES,
    LatentState,
    control_at,
    known_verdict,
    state_of,
    states_of,
    verdict,
)
from dsd_lab.report.statistics.latent_state import VERDICTS as VERDICTS
from dsd_lab.specs.report import ReportSettings


@dataclass(frozen=True)
class Judged:
    """The verdict on a trial."""

    verdict: str | None
    """None for a trial that diverged, has not finished or was never probed."""
    collapsed_at: int | None
    """First probe step from which all verdicts are unhealthy; None for a healthy trial, or without a verdict."""
    by_control: bool
    """Whether it was compared with a control; else with fixed bounds."""


def latent_state(result: Result, probes: int) -> LatentState | None:
    """The final state of a trial's latents; None without probes."""
    values = [result.last_probes(name, probes) for name in MEASURES]
    if any(v is None for v in values) or not result.description:
        return None
    return state_of(_network(result), patch_ranks(result), [float(v) for v in values if v is not None])


def _network(result: Result) -> dict[str, Any]:
    return result.trial.network.model_dump()


def patch_ranks(result: Result) -> tuple[float, float] | None:
    """Effective ranks, at least 1, of the probe images' patches and of the images; None if not recorded."""
    token, image = (result.last_probes(name, 1) for name in PATCHES)
    return None if token is None or image is None else (max(token, 1.0), max(image, 1.0))


def controls_of(results: list[Result], settings: ReportSettings) -> dict[Place, Result]:
    """Finished and probed trials of the control variant, by `cell_of`."""
    return {
        cell_of(r): r
        for r in results
        if r.variant == settings.control and r.finished and latent_state(r, settings.probes) is not None
    }


def judge(results: list[Result], settings: ReportSettings) -> dict[str, Judged]:
    """Verdicts by `row_key`.

    The control itself, and trials without a finished control, are compared with fixed bounds. There is no verdict for a
    rank collapse without a control if the rank of the images' patches was not recorded.
    """
    controls = controls_of(results, settings)
    over_training = cache(lambda key: states_over_training(controls[key], settings.probes))
    found: dict[str, Judged] = {}
    for result in results:
        state = latent_state(result, settings.probes) if result.finished else None
        control = None if result.variant == settings.control else controls.get(cell_of(result))
        if state is None:
            found[row_key(result)] = Judged(None, None, control is not None)
            continue
        against = None if control is None else latent_state(control, settings.probes)
        name = known_verdict(state, against, settings)
        if name is None:
            found[row_key(result)] = Judged(None, None, False)
            continue
        onset = None
        if name != HEALTHY:
            beside = over_training(cell_of(result)) if control else ([], [])
            onset = _collapse_step(result, beside, settings)
        found[row_key(result)] = Judged(name, onset, control is not None)
    return found


def _collapse_step(result: Result, control: tuple[list[int], list[LatentState]], settings: ReportSettings) -> int:
    """First step of the last run of unhealthy verdicts; the trial's last verdict must be unhealthy.

    The verdict at a step applies the same rules to the probes up to that step, with the control at the same step.
    """
    steps, states = states_over_training(result, settings.probes)
    control_steps, control_states = control
    first = steps[-1]
    for step, state in zip(reversed(steps[:-1]), reversed(states[:-1]), strict=True):
        if verdict(state, control_at(step, control_steps, control_states), settings) == HEALTHY:
            break
        first = step
    return first


def states_over_training(result: Result, probes: int) -> tuple[list[int], list[LatentState]]:
    """Probe steps, and the state of the latents at each, from medians over the last probes."""
    measured = [result.history.series(name) for name in MEASURES]
    steps = measured[0][0]
    for other, _ in measured[1:]:
        steps = steps if np.array_equal(steps, other) else np.intersect1d(steps, other)
    table = [values[np.isin(at, steps)] for at, values in measured]
    return [int(s) for s in steps], states_of(_network(result), patch_ranks(result), table, probes)


def row_key(result: Result) -> str:
    """Key of a row within a sweep; not the trial's id, since two variants may share one trial."""
    return f"{result.group} s{result.seed}"


Place = tuple[str, int, str, str]


def cell_of(result: Result) -> Place:
    """Sweep, seed, size and grid point: trials with equal values are compared with each other."""
    return result.sweep, result.seed, result.size, repr(sorted(result.point.items()))
