"""Training with all gradients live against the same objective detached, across latent normalisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_lab.report.figures.style import legend, panels
from dsd_lab.report.groups import Group
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.latent_state import RANK_COLLAPSED, RUNAWAY, SHRUNK, LatentState
from dsd_lab.report.statistics.verdicts import cell_of, controls_of, latent_state
from dsd_lab.report.tables.published import reference
from dsd_lab.specs.metrics import fids
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Trial, reaches_encoder

_COLOURS = {"velocity net": "#D55E00", "clean net, weighted": "#0072B2", "clean net": "#56B4E9"}
_MARKS = {SHRUNK: "x", RANK_COLLAPSED: "+", RUNAWAY: "^"}
PUBLISHED = {
    "REPA-E": ("REPA-E without its stop-gradient", "REPA-E"),
    "SpeeDiff": ("SpeeDiff's baseline, end to end", "SpeeDiff's baseline, detached"),
}
"""Rows of `collapse.csv`: with all gradients live, and with a stop-gradient."""


@dataclass(frozen=True)
class Joint:
    """A trial with all gradients live, compared with its control and its detached partner of the same sweep, seed and grid point."""

    normaliser: str
    objective: str
    verdict: str | None
    std: float
    rank: float
    """The lower of tokens and images. Std and rank are divided by the control's."""
    fid: float | None
    """FID divided by the detached partner's."""


def normaliser_of(trial: Trial) -> str:
    """The normaliser of a trial's latents, and whether its decoder reads them raw."""
    return trial.latent.normaliser + (", decoder reads raw" if trial.latent.decoded == "raw" else "")


def objective_of(trial: Trial) -> str | None:
    """The form of the objective; None for objectives that the figure leaves out."""
    spec = trial.objective
    if spec.diffusion_weight == 0 or spec.anchor_weight > 0 or spec.encoder_gradient < 1 or trial.training.phases:
        return None
    if trial.latent.regularisers or trial.latent.entropy_weight > 0 or trial.latent.decoder_noise > 0:
        return None
    if (spec.output, spec.loss_space) == ("velocity", "velocity"):
        return "velocity net"
    if (spec.output, spec.loss_space) == ("clean", "clean"):
        return "clean net" if spec.weighting == "none" else "clean net, weighted"
    return None


def joint_trials(groups: Sequence[Group], settings: ReportSettings) -> list[Joint]:
    """The trials with all gradients live, each once, of those whose control and latents are known."""
    results = [r for g in groups for r in g.described]
    controls = controls_of(results, settings)
    partners = {(objective_of(r.trial), cell_of(r)): r for r in results if not reaches_encoder(r.trial.objective)}
    found: dict[str, Joint] = {}
    for group in groups:
        for result in group.described:
            spec, form = result.trial.objective, objective_of(result.trial)
            control = controls.get(cell_of(result))
            if form is None or spec.target != "live" or spec.noised != "live" or control is None:
                continue
            states = [latent_state(r, settings.probes) for r in (result, control)]
            if states[0] is None or states[1] is None or min(states[1].std, _rank(states[1])) == 0:
                continue
            partner = partners.get((form, cell_of(result)))
            fid = None if partner is None else _ratio(result, partner)
            made = Joint(normaliser_of(result.trial), form, group.verdicts[result.seed], states[0].std / states[1].std, _share(states[0], states[1]), fid)  # fmt: skip
            if (
                result.id not in found or found[result.id].fid is None
            ):  # a trial of two sweeps may have a partner in one
                found[result.id] = made
    return list(found.values())


def _rank(state: LatentState) -> float:
    return min(state.rank_token, state.rank_image)


def _share(state: LatentState, control: LatentState) -> float:
    return min(state.rank_token / control.rank_token, state.rank_image / control.rank_image)


def _ratio(result: Result, partner: Result) -> float | None:
    """FID over the partner's, of the first kind of FID that both have."""
    for name in fids(result.metrics.keys() & partner.metrics.keys()):
        ours, theirs = result.metrics[name], partner.metrics[name]
        if math.isfinite(ours) and ours > 0 and theirs > 0:
            return ours / theirs
    return None


def published_ratios() -> dict[str, float]:
    """Published FID with all gradients live over that with a stop-gradient."""
    rows = {row["method"]: row["setup"] for row in reference("collapse")}
    fids = {name: [_fid(rows[row]) for row in pair] for name, pair in PUBLISHED.items()}
    return {name: joint / stopped for name, (joint, stopped) in fids.items()}


def _fid(setup: str) -> float:
    """The number in `... FID 33.95 without guidance`."""
    return float(setup.partition("FID ")[2].split()[0])


def normalisers(groups: Sequence[Group], looks: object, settings: ReportSettings) -> Figure | None:
    """FID, scale and rank over the normalisers; None where fewer than two of them have joint trials with a partner."""
    found = joint_trials(groups, settings)
    names = list(dict.fromkeys(j.normaliser for j in found))
    if len({j.normaliser for j in found if j.fid is not None}) < 2:
        return None
    forms = [f for f in _COLOURS if any(j.objective == f for j in found)]
    figure, axes = panels(3, 2.1, 1, sharex=True)
    figure.set_figwidth(8.4)
    for place, form in enumerate(forms):
        for column, name in enumerate(names):
            some = [j for j in found if (j.normaliser, j.objective) == (name, form)]
            x = column + 0.22 * (place - (len(forms) - 1) / 2)
            series: list[Sequence[float | None]] = [
                [j.fid for j in some],
                [j.std for j in some],
                [j.rank for j in some],
            ]
            for part, values in zip(axes, series, strict=True):
                _marks(part, x, values, [j.verdict for j in some], _COLOURS[form])
        axes[0].plot([], [], "o", color=_COLOURS[form], linestyle="", label=form)
    for verdict, mark in _MARKS.items():
        if any(j.verdict == verdict for j in found):
            axes[0].plot([], [], mark, color="0.4", linestyle="", label=verdict)
    for name, ratio in published_ratios().items():
        axes[0].axhline(ratio, color="0.4", linestyle=":", linewidth=1)
        axes[0].text(
            len(names) - 0.42, ratio, f" {name}: {ratio:.3g}", fontsize=7, va="bottom", ha="right", color="0.3"
        )
    axes[0].axhline(1, color="0.4", linewidth=0.8)
    axes[1].axhline(settings.shrunk, color="0.6", linestyle="--", linewidth=0.8)
    axes[2].axhline(settings.rank, color="0.6", linestyle="--", linewidth=0.8)
    axes[0].set(yscale="log", ylabel="FID over detached", xlim=(-0.5, len(names) - 0.4))
    axes[1].set(yscale="log", ylabel="latent std\nover control")
    axes[2].set(ylim=(0, None), ylabel="effective rank\nover control")
    axes[2].set_xticks(range(len(names)), [name.replace(", ", ",\n").replace("_", "\n") for name in names])
    legend(figure, axes)
    return figure


def _marks(axes: Axes, x: float, values: Sequence[float | None], verdicts: Sequence[str | None], colour: str) -> None:
    """One mark per trial by its verdict, and a bar at their geometric mean."""
    known = [(v, verdict) for v, verdict in zip(values, verdicts, strict=True) if v is not None and v > 0]
    for value, verdict in known:
        axes.plot([x], [value], _MARKS.get(verdict or "", "o"), color=colour, markersize=5, alpha=0.8)
    if known:
        middle = float(np.exp(np.mean([math.log(v) for v, _ in known])))
        axes.plot([x - 0.09, x + 0.09], [middle, middle], "-", color=colour, linewidth=1.4)
