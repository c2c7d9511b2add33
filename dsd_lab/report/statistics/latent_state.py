"""The rule of the collapse verdict: what state latents are in, and what that is called. Imports numpy alone.

A verdict needs scale and rank, since no single number shows collapse: effective rank misses uniform
shrinking, variance misses lost directions. It is judged against a reconstruction-only control of the
same seed, size and grid point where the sweep has one. Without one, ranks are judged against what the
images give latents to fill: the effective rank of their own patches at that token count, as far as the
channels reach. Channels alone bound nothing: no data fills 128 of them from patches of 16 pixels.

The report and the live table of a sweep call the same functions.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_lab.specs.report import ReportSettings

HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY = "healthy", "shrunk", "rank-collapsed", "scale-runaway"
VERDICTS = (HEALTHY, SHRUNK, RANK_COLLAPSED, RUNAWAY)
MEASURES = (
    "latent/variance",
    "latent/effective_rank/token",
    "latent/effective_rank/image",
    "latent/capacity_bits/token",
    "latent/probe_images",
)
"""Metrics of a probe that a state is made from, in the order of `state_of`."""
PATCHES = ("patches/effective_rank/token", "patches/effective_rank/image")
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
    patches_known: bool
    """Whether the rank of the images' patches was recorded; else the bounds are of the network's size alone."""


def state_of(network: dict[str, Any], patches: tuple[float, float] | None, values: Sequence[float]) -> LatentState:
    """The state that medians of a probe's metrics give.

    Args:
        network: fields of the trial's network.
        patches: effective ranks of the images' patches and of the images, where they were recorded.
        values: of `MEASURES`.
    """
    variance, token, image, capacity, images = values
    channels, tokens = network["latent_channels"], (network["image_size"] // network["patch_size"]) ** 2
    filled = patches or (math.inf, math.inf)
    bounds = min(channels, filled[0]), min(tokens * channels, int(images) - 1, filled[1])
    return LatentState(variance**0.5, token, image, capacity, *bounds, patches is not None)


def states_of(
    network: dict[str, Any], patches: tuple[float, float] | None, table: Sequence[NDArray[Any]], probes: int
) -> list[LatentState]:
    """The state at every probe: medians over it and the up to `probes` - 1 before it.

    Args:
        network: fields of the trial's network.
        patches: as for `state_of`.
        table: values [S] at the S probes of each of `MEASURES`.
        probes: that a median is taken over.
    """
    medians = [_running_median(np.asarray(values), probes).tolist() for values in table]
    return [state_of(network, patches, row) for row in zip(*medians, strict=True)]


def _running_median(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Median of each value and the up to `width` - 1 before it."""
    head = [np.median(values[: i + 1]) for i in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(head)
    return np.concatenate([head, np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)])


def verdict(state: LatentState, control: LatentState | None, settings: ReportSettings) -> str:
    """The verdict on latents, against a control's or against bounds of scale and of what images fill; the first that applies."""
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


def known_verdict(state: LatentState, control: LatentState | None, settings: ReportSettings) -> str | None:
    """The verdict; None where a rank would have collapsed by bounds that are not known, for want of the patches' rank."""
    found = verdict(state, control, settings)
    return None if found == RANK_COLLAPSED and control is None and not state.patches_known else found


def control_at(step: int, steps: Sequence[int], states: Sequence[LatentState]) -> LatentState | None:
    """A control's state at a step of another trial: of its latest probe by then, else of its first; None without probes."""
    return states[max(bisect_right(steps, step) - 1, 0)] if states else None
