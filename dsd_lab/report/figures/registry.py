"""The figures of a report, each with small multiples over the grid points."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsd_lab.report.figures import differences as difference_figures
from dsd_lab.report.figures import early_signs as sign_figures
from dsd_lab.report.figures import latents as latent_figures
from dsd_lab.report.figures import normalisers as normaliser_figures
from dsd_lab.report.figures import over_training, scaling
from dsd_lab.report.figures import pictures as picture_figures
from dsd_lab.report.figures import regimes as regime_figures
from dsd_lab.report.figures import spectra as spectrum_figures
from dsd_lab.report.figures import theory as theory_figures
from dsd_lab.report.figures import viv as viv_figures
from dsd_lab.report.figures.style import Look, looks_of, notes_of, save_figure, style
from dsd_lab.report.groups import Group, effective_control
from dsd_lab.report.page.page import Drawn
from dsd_lab.report.statistics.agreement import ASSUMED
from dsd_lab.specs.report import ReportSettings

_Draw = Callable[[list[Group], dict[str, Look], ReportSettings], Figure | None]
FIGURES: tuple[tuple[str, str, _Draw], ...] = (
    (
        "verdicts",
        "Scale and rank of the latents of every trial, relative to the control of its seed if there is one, with the regions of the verdicts. The third measure, capacity, is in the table.",
        latent_figures.verdict_map,
    ),
    (
        "curves",
        "Scale, ranks and capacity of the latents over training. Line: mean over seeds; band: smallest to largest seed; thin: trials that diverged or have not finished.",
        latent_figures.curves,
    ),
    (
        "survival",
        "Time to collapse: fraction of seeds whose latents have not permanently collapsed by a step (Kaplan-Meier). Curves are shifted slightly, so that equal ones are visible.",
        latent_figures.survival,
    ),
    (
        "differences",
        "Every variant minus the reference, paired by seed. Large mark: mean; bar: 95 % interval of the mean (assumes normal differences); small marks: seeds. Long bars are cut. An interval that contains 0 shows neither a difference nor its absence.",
        difference_figures.differences,
    ),
    (
        "map",
        "Mean difference from the reference over two axes of the grid, paired by seed; blue is better. Framed: its 95 % interval excludes 0. n: pairs of seeds, where fewer than planned.",
        regime_figures.regime_map,
    ),
    (
        "viv",
        "VIV (the lowest loss of a velocity prediction) and capacity against FID, one mark per trial. Dashed: least-squares fit to the healthy trials. Right: FID against its least-squares fit by VIV and capacity over all trials, in logarithms; dotted: equal values.",
        viv_figures.viv,
    ),
    (
        "normalisers",
        "Training with all gradients live, across latent normalisers: FID divided by that of the same objective detached, and latent std and effective rank divided by the control's. Mark: a trial, by its verdict; bar: geometric mean. Dotted: published FID without a stop-gradient divided by that with one (REPA-E on latents that its decoder reads raw, SpeeDiff under KL; UNITE, a weighted clean network under affine LayerNorm, reports no collapse). Dashed: thresholds of the verdicts.",
        normaliser_figures.normalisers,
    ),
    (
        "spectrum_maps",
        "Covariance spectrum of the latent tokens over training, geometric mean over seeds. White line in the colour bar: variance 1 of the diffusion noise; directions below it are lost in the noise.",
        spectrum_figures.spectrum_maps,
    ),
    (
        "spectra",
        "Covariance spectra of the latents at the end of training. Line: mean over seeds; band: smallest to largest seed. Dotted: variance 1 of the diffusion noise; directions below it are lost in the noise.",
        spectrum_figures.spectra,
    ),
    (
        "rank_gap",
        "Rank gap: effective rank of the clean target minus that of the clean prediction, at token level, by time. Line: mean over seeds; band: smallest to largest seed.",
        spectrum_figures.rank_gap,
    ),
    (
        "over_training",
        "Samples over training: evaluations of the kept checkpoints and of the weights at the end of training. Line: mean over seeds; band: smallest to largest seed.",
        over_training.over_training,
    ),
    (
        "scaling",
        "Scale, rank and capacity of the latents, and FID, against the number of weights. Mark: mean over seeds; bar: smallest to largest seed.",
        scaling.scaling,
    ),
    (
        "theory",
        "Theory against measurement. Derivative of the diffusion loss with respect to the latents' scale over training (line and band: measured, mean over seeds; dotted: closed form), "
        "the same for every principal direction at the end (positive: gradient descent shrinks it), and rank gap against the change of effective rank from the next probe to the one after. "
        + ASSUMED,
        theory_figures.theory,
    ),
    (
        "reconstructions",
        "Held-out images (odd columns) and their reconstructions by the averaged weights (even columns).",
        picture_figures.reconstructions,
    ),
    (
        "samples",
        "Samples of the averaged weights; all variants start from the same noise and labels.",
        picture_figures.samples,
    ),
)

NOTEBOOK_FIGURES: tuple[tuple[str, str, _Draw], ...] = (
    (
        "early_signs",
        "Slow collapse. Top: the smallest of std, capacity and ranks over the verdict's threshold against the control; below 1 the latents are shrunk or rank-collapsed. Triangle: the first probe from which it stays below 1. Below: early signs; positive values indicate a coming loss of scale or rank. Line: mean over seeds; band: smallest to largest seed.",
        sign_figures.early_signs,
    ),
)
"""Figures for notebooks only: they read the whole history of every trial."""


def draw_all(groups: list[Group], settings: ReportSettings, folder: Path) -> list[Drawn]:
    """Draw all figures for which there are data, in reading order."""
    folder.mkdir(parents=True, exist_ok=True)
    if not groups:
        return []
    looks = looks_of(groups, effective_control(groups, settings))
    shared = (groups, looks, settings, folder)
    cores = min(len(os.sched_getaffinity(0)), len(FIGURES))
    # Forked processes share the histories of all trials without copies; Matplotlib uses one core.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), _share, shared) as pool:
        done = list(pool.map(_draw_one, range(len(FIGURES))))
    return [
        Drawn(stem, f"{caption} {notes}".strip())
        for (stem, caption, _), notes in zip(FIGURES, done, strict=True)
        if notes is not None
    ]


_shared: tuple[Any, ...] = ()
"""Arguments of `_draw_one`, set in each forked process."""


def _share(*arguments: Any) -> None:
    global _shared
    _shared = arguments


def _draw_one(number: int) -> str | None:
    """Draw and save a figure. Returns what it adds to its caption; None if there are no data for it."""
    groups, looks, settings, folder = _shared
    stem, _, draw = FIGURES[number]
    with style():
        figure = draw(groups, looks, settings)
        if figure is None:
            return None
        save_figure(figure, folder / stem)
    return notes_of(figure)
