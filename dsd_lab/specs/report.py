"""Fields of the report: control, reference, thresholds of verdicts, tuned axes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dsd_lab.specs.trial import Section

XAxis = Literal["step", "images", "flops"]


class Tuning(Section):
    """Report every variant at its own best value of one grid axis."""

    axis: str = "optimiser.lr"
    """The axis of `grid` that is tuned."""
    by: str = "fid"
    """Metric that selects the value: first part of its name, such as `fid`, `kid`, `label_accuracy`. Variants without this metric use the reconstruction loss."""
    higher_is_better: bool = False
    """Whether that metric is better when higher."""


class Mapping(Section):
    """Show the paired difference from the reference over two grid axes."""

    x: str
    """The axis of `grid` from left to right."""
    y: str
    """The axis of `grid` from bottom to top."""
    by: str = "fid"
    """First part of the name of the metric, such as `fid`, `label_accuracy`, or a whole name, such as `latent/capacity_bits/token`."""
    higher_is_better: bool = False
    """Whether that metric is better when higher."""


class ReportSettings(Section):
    """Thresholds of the collapse verdict and what the report shows."""

    control: str | None = "control"
    """Variant that verdicts compare with, seed by seed; null uses fixed bounds."""
    reference: str | None = None
    """Variant that the others are compared with, seed by seed; null: `dsd`, else the control, else the first."""
    runaway: float = Field(5.0, gt=1, le=1e6)
    """scale-runaway: latent std above this multiple of the control's."""
    shrunk: float = Field(0.2, gt=0, lt=1)
    """shrunk: latent std below this fraction of the control's."""
    capacity: float = Field(0.25, gt=0, lt=1)
    """shrunk: capacity in bits below this fraction of the control's."""
    rank: float = Field(0.5, gt=0, lt=1)
    """rank-collapsed: effective rank (token or image) below this fraction of the control's."""
    runaway_std: float = Field(10.0, gt=0, le=1e9)
    """Without a control: scale-runaway above this std."""
    shrunk_std: float = Field(0.1, gt=0, le=1e9)
    """Without a control: shrunk below this std."""
    rank_bound: float = Field(0.25, gt=0, lt=1)
    """Without a control: rank-collapsed below this fraction of the effective rank of the images' patches."""
    probes: int = Field(3, ge=1, le=1000)
    """A verdict uses the median of this many last probes."""
    x: XAxis = "step"
    """x axis of figures over training: optimiser steps, training images seen, or training FLOPs."""
    tuned: Tuning | None = None
    """If set, each seed is reported at the axis value that is best for the other seeds."""
    map: Mapping | None = None
    """If set, a map over two grid axes shows where each variant differs from the reference."""
