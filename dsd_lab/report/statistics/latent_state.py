"""The rules of the collapse verdict: the state of latents, and its classification. Imports only numpy.

A verdict uses scale and rank, because no single number shows collapse: effective rank misses uniform shrinking, and
variance misses lost directions. The state is compared with that of a reconstruction-only control with the same seed,
size and grid point. Without a control, ranks are compared with the effective rank of the images' patches at that token
count, but at most the number of channels. The number of channels alone is no useful bound: patches of 16 pixels do not
fill 128 channels.

The report and the live table of a sweep use the same functions.
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
"""Metrics of a probe that define a state, in the order of `state_of`."""
PATCHES = ("patches/effective_rank/token", "patches/effective_rank/image")
"""Metrics of the probe images; the same at every probe, and not recorded by early versions."""


@dataclass(frozen=True)
class LatentState:
    """The input of a verdict: medians of the last probes."""

    std: float
    rank_token: float
    rank_image: float
    capacity: float
    """Bits per token."""
    token_bound: float
    """Upper bound of the token-level rank: effective rank of the images' patches, at most the number of channels."""
    image_bound: float
    """Upper bound of the image-level rank: that of the images, at most min(tokens x channels, probe images - 1)."""
    patches_known: bool
    """Whether the rank of the images' patches was recorded; if not, the bounds come from the network's size alone."""


def state_of(network: dict[str, Any], patches: tuple[float, float] | None, values: Sequence[float]) -> LatentState:
    """The state for given medians of metrics.

    Args:
        network: fields of the trial's network.
        patches: effective ranks of the images' patches and of the images; None if not recorded.
        values: values of `MEASURES`.
    """
    variance, token, image, capacity, images = values
    channels, tokens = network["latent_channels"], (network["image_size"] // network["patch_size"]) ** 2
    filled = patches or (math.inf, math.inf)
    bounds = min(channels, filled[0]), min(tokens * channels, int(images) - 1, filled[1])
    return LatentState(variance**0.5, token, image, capacity, *bounds, patches is not None)


def states_of(
    network: dict[str, Any], patches: tuple[float, float] | None, table: Sequence[NDArray[Any]], probes: int
) -> list[LatentState]:
    """The state at every probe, from medians over that probe and up to `probes` - 1 before it.

    Args:
        network: fields of the trial's network.
        patches: as for `state_of`.
        table: values [S] at S probes, for each of `MEASURES`.
        probes: number of probes for a median.
    """
    medians = [running_median(np.asarray(values), probes).tolist() for values in table]
    return [state_of(network, patches, row) for row in zip(*medians, strict=True)]


def running_median(values: NDArray[Any], width: int) -> NDArray[Any]:
    """Median of each value and up to `width` - 1 values before it."""
    head = [np.median(values[: i + 1]) for i in range(min(width - 1, len(values)))]
    if len(values) < width:
        return np.array(head)
    return np.concatenate([head, np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)])


def verdict(state: LatentState, control: LatentState | None, settings: ReportSettings) -> str:
    """The verdict: the first rule that applies, against a control or, without one, against fixed bounds."""
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
    """The verdict; None for a rank collapse without a control if the patches' rank was not recorded."""
    found = verdict(state, control, settings)
    return None if found == RANK_COLLAPSED and control is None and not state.patches_known else found


def control_at(step: int, steps: Sequence[int], states: Sequence[LatentState]) -> LatentState | None:
    """A control's state at a step: at its latest probe up to that step, else at its first; None without probes."""
    return states[max(bisect_right(steps, step) - 1, 0)] if states else None
