"""The collapse verdict: computed from raw values when a report is made, never stored as truth.

A verdict needs scale and rank, since no single number shows collapse: effective rank misses uniform
shrinking, variance misses lost directions. It is judged against a reconstruction-only control of the
same seed, size and grid point where the sweep has one. Without one, ranks are judged against what the
images give latents to fill: the effective rank of their own patches at that token count, as far as the
channels reach. Channels alone bound nothing: no data fills 128 of them from patches of 16 pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from dsd_lab.report.results import Result
from dsd_lab.specs.report import ReportSettings

HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY = "healthy", "shrunk", "rank-collapsed", "scale-runaway"
VERDICTS = (HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY)
_MEASURES = (
    "latent/variance",
    "latent/effective_rank/token",
    "latent/effective_rank/image",
    "latent/capacity_bits/token",
    "latent/probe_images",
)
_PATCHES = ("patches/effective_rank/token", "patches/effective_rank/image")
"""Of the probe's images; the same at every probe, and not recorded by early versions."""


@dataclass(frozen=True)
class LatentState:
    """What a verdict is made from: medians of the last probes."""

    std: float
    rank_token: float
    rank_image: float
    capacity: float
    """Bits a token."""
    token_bound: float
    """Token-level rank that the images can fill: of their patches, at most the number of channels."""
    image_bound: float
    """Image-level rank that they can fill: of the images, at most min(tokens x channels, probe images - 1)."""


@dataclass(frozen=True)
class Judged:
    """The verdict on a trial and how it came about."""

    verdict: str | None
    """None for a trial that diverged, has not finished or was never probed."""
    collapsed_at: int | None
    """First probe step from which every verdict up to the last is unhealthy; None where the last is healthy or there is none."""
    by_control: bool
    """Judged against a control's latents; else against fixed bounds."""


def latent_state(result: Result, probes: int) -> LatentState | None:
    """The state of a trial's latents at the end; None where it was never probed."""
    values = [result.last_probes(name, probes) for name in _MEASURES]
    if any(v is None for v in values) or not result.description:
        return None
    return _state(result, *(float(v) for v in values if v is not None))


def _state(result: Result, variance: float, token: float, image: float, capacity: float, images: float) -> LatentState:
    network = result.trial.network
    channels, tokens = int(network.latent_channels or 0), network.tokens
    filled = patch_ranks(result) or (math.inf, math.inf)
    bounds = min(channels, filled[0]), min(tokens * channels, int(images) - 1, filled[1])
    return LatentState(variance**0.5, token, image, capacity, *bounds)


def patch_ranks(result: Result) -> tuple[float, float] | None:
    """Effective ranks, at least 1, of the probe images' patches and of the images themselves; None where they were not recorded."""
    token, image = (result.last_probes(name, 1) for name in _PATCHES)
    return None if token is None or image is None else (max(token, 1.0), max(image, 1.0))


def verdict(state: LatentState, control: LatentState | None, settings: ReportSettings) -> str:
    """The verdict on latents, against a control's or against bounds of scale and of what images fill; the first that applies."""
    if control is not None:
        high, low, few = (
            settings.runaway * control.std,
            settings.shrunk * control.std,
            settings.capacity * control.capacity,
        )
        ranks = settings.rank * control.rank_token, settings.rank * control.rank_image
    else:
        high, low, few = settings.runaway_std, settings.shrunk_std, -math.inf
        ranks = settings.rank_bound * state.token_bound, settings.rank_bound * state.image_bound
    if state.std > high:
        return RUNAWAY
    if state.std < low or state.capacity < few:
        return SHRUNK
    return RANK_COLLAPSED if state.rank_token < ranks[0] or state.rank_image < ranks[1] else HEALTHY


def controls_of(results: list[Result], settings: ReportSettings) -> dict[tuple[int, str, str], Result]:
    """The finished and probed trials of the control variant by seed, size and grid point."""
    return {
        cell_of(r): r
        for r in results
        if r.variant == settings.control and r.finished and latent_state(r, settings.probes) is not None
    }


def judge(results: list[Result], settings: ReportSettings) -> dict[str, Judged]:
    """Verdicts by `row_key`.

    The control is judged against bounds, since it cannot be judged against itself; so is a trial whose
    control has no finished trial. Where the rank of the images' patches was not recorded, a rank is not
    known to have collapsed without a control, and there is no verdict.
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
        name = verdict(state, against, settings)
        if name == RANK_COLLAPSED and against is None and patch_ranks(result) is None:
            found[row_key(result)] = Judged(None, None, False)
            continue
        onset = None
        if name != HEALTHY:
            beside = over_training(cell_of(result)) if control else ([], [])
            onset = _collapse_step(result, beside, settings)
        found[row_key(result)] = Judged(name, onset, control is not None)
    return found


def _collapse_step(result: Result, control: tuple[list[int], list[LatentState]], settings: ReportSettings) -> int:
    """First step of the last unbroken run of unhealthy verdicts; the trial's last verdict must be unhealthy.

    The verdict at a step is the final one's rule applied to the probes up to that step, against the
    control at the same step.
    """
    steps, states = states_over_training(result, settings.probes)
    control_steps, control_states = control
    first = steps[-1]
    for step, state in zip(reversed(steps[:-1]), reversed(states[:-1]), strict=True):
        place = max(bisect_right(control_steps, step) - 1, 0)  # the control's latest probe by then
        if verdict(state, control_states[place] if control_states else None, settings) == HEALTHY:
            break
        first = step
    return first


def states_over_training(result: Result, probes: int) -> tuple[list[int], list[LatentState]]:
    """Probe steps and the state of the latents at each: medians over it and the probes before it."""
    measured = [result.history.series(name) for name in _MEASURES]
    steps = measured[0][0]
    for other, _ in measured[1:]:
        steps = steps if np.array_equal(steps, other) else np.intersect1d(steps, other)
    table = pd.DataFrame(
        {name: values[np.isin(at, steps)] for name, (at, values) in zip(_MEASURES, measured, strict=True)}
    )
    medians = table.rolling(probes, min_periods=1).median()
    return [int(s) for s in steps], [_state(result, *row) for row in medians.itertuples(index=False)]


def row_key(result: Result) -> str:
    """Names a trial within a sweep: two variants may share one trial."""
    return f"{result.group} s{result.seed}"


def cell_of(result: Result) -> tuple[int, str, str]:
    """Seed, size and grid point: trials that agree in these are compared with each other."""
    return result.seed, result.size, repr(sorted(result.point.items()))
