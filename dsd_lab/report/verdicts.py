"""The collapse verdict: computed from raw values when a report is made, never stored as truth.

A verdict needs scale and rank, since no single number shows collapse: effective rank misses uniform
shrinking, variance misses lost directions. It is judged against a reconstruction-only control of the
same seed, size and grid point where the sweep has one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsd_lab.report.results import Result
from dsd_lab.specs.sweep import ReportSettings

HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY = "healthy", "shrunk", "rank-collapsed", "scale-runaway"
VERDICTS = (HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY)


@dataclass(frozen=True)
class LatentState:
    """What a verdict is made from: medians of the last probes."""

    std: float
    rank_token: float
    rank_image: float
    capacity: float
    token_bound: int
    """Largest possible token-level rank: the number of channels."""
    image_bound: int
    """Largest possible image-level rank: min(tokens x channels, probe images - 1)."""


def latent_state(result: Result, probes: int) -> LatentState | None:
    """The state of a trial's latents; None where it was never probed."""
    names = (
        "latent/variance",
        "latent/effective_rank/token",
        "latent/effective_rank/image",
        "latent/capacity_bits/token",
        "latent/probe_images",
    )
    values = [result.last_probes(name, probes) for name in names]
    if any(v is None for v in values) or not result.description:
        return None
    variance, token, image, capacity, images = (float(v) for v in values if v is not None)
    network = result.description["fields"]["network"]
    channels, tokens = network["latent_channels"], (network["image_size"] // network["patch_size"]) ** 2
    return LatentState(variance**0.5, token, image, capacity, channels, min(tokens * channels, int(images) - 1))


def verdict(state: LatentState, control: LatentState | None, settings: ReportSettings) -> str:
    """The verdict on a trial's latents, against its control or against fixed bounds."""
    if control is not None:
        if state.std > settings.runaway * control.std:
            return RUNAWAY
        if state.std < settings.shrunk * control.std or state.capacity < settings.capacity * control.capacity:
            return SHRUNK
        if (
            state.rank_token < settings.rank * control.rank_token
            or state.rank_image < settings.rank * control.rank_image
        ):
            return RANK_COLLAPSED
        return HEALTHY
    if state.std > settings.runaway_std:
        return RUNAWAY
    if state.std < settings.shrunk_std:
        return SHRUNK
    if (
        state.rank_token < settings.rank_bound * state.token_bound
        or state.rank_image < settings.rank_bound * state.image_bound
    ):
        return RANK_COLLAPSED
    return HEALTHY


def verdicts(results: list[Result], settings: ReportSettings) -> dict[str, str | None]:
    """Verdict by `(group, seed)` key of `row_key`; None for a trial that diverged, is unfinished or was not probed.

    The control is judged against the fixed bounds, since it cannot be judged against itself.
    """
    states = {row_key(r): latent_state(r, settings.probes) for r in results if r.state in ("done", "stale")}
    controls = {_cell(r): states.get(row_key(r)) for r in results if r.variant == settings.control}
    found: dict[str, str | None] = {}
    for result in results:
        state = states.get(row_key(result))
        control = None if result.variant == settings.control else controls.get(_cell(result))
        found[row_key(result)] = None if state is None else verdict(state, control, settings)
    return found


def row_key(result: Result) -> str:
    """Names a trial within a sweep: two variants may share one trial."""
    return f"{result.group} s{result.seed}"


def _cell(result: Result) -> tuple[int, str, str]:
    return result.seed, result.size, repr(sorted(result.point.items()))
