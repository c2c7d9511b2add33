"""Tables of a report: verdicts, evaluations, rank gap, cost, trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dsd_lab.home.parameter_count import parameters_in
from dsd_lab.report.groups import Column, Group, floors_of, short_labels, value_of
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import estimate
from dsd_lab.report.statistics.verdicts import VERDICTS
from dsd_lab.report.tables.measured_how import measured_how
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell, shown
from dsd_lab.specs.metrics import BESIDE_SAMPLES, RANK_GAP, SAMPLE
from dsd_lab.specs.report import ReportSettings
from dsd_lab.units import short_count

_MAIN_COLUMNS = ("latent/", *BESIDE_SAMPLES)
"""Columns of the first table. It includes samples, since they can fail while latents look healthy."""
_LOWER_IS_BETTER = tuple(f"{metric.recorded}/" for metric in SAMPLE if metric.lower_is_better)


def verdict_table(groups: list[Group], columns: list[Column], looks: dict[str, str]) -> Table:
    """One row per group: verdicts with the interval of the healthy fraction, step of collapse, and main quantities."""
    visible = [c for c in columns if c.name.startswith(_MAIN_COLUMNS)]
    rows = [[Cell(g.name), _verdict_cell(g), _collapse_cell(g), *_estimates(g, visible)] for g in groups]
    floors = floors_of([r for g in groups for r in g.results], visible)
    if floors:
        rows.append([Cell("real images", "same N and classes"), Cell(""), Cell(""), *_floors(visible, floors)])
    frame = pd.DataFrame([_verdict_numbers(g, columns) for g in groups])
    labels = short_labels(visible)
    header = ["variant", "verdicts", "collapsed at step", *labels.values()]
    dots, how = [looks[g.variant] for g in groups], measured_how(visible, labels)
    return Table("verdicts", "Verdicts on the latents, and samples", header, rows, frame, how, dots)


def evaluation_table(groups: list[Group], columns: list[Column], looks: dict[str, str]) -> Table | None:
    """One row per group with all evaluations; None without evaluations."""
    visible = [c for c in columns if not c.is_latent]
    members = [g for g in groups if any(c.name in g.estimates for c in visible)]
    if not members:
        return None
    rows = [[Cell(g.name), *_estimates(g, visible)] for g in members]
    floors = floors_of([r for g in groups for r in g.results], visible)
    if floors:
        rows.append([Cell("real images"), *_floors(visible, floors)])
    frame = pd.DataFrame(
        {
            "variant": g.variant,
            **g.point,
            "metric": c.name,
            **vars(g.estimates[c.name]),
            "real_against_real": floors.get(c.name),
        }
        for g in members
        for c in visible
        if c.name in g.estimates
    )
    labels = short_labels(visible)
    better = [labels[c.name] for c in visible if c.name.startswith(_LOWER_IS_BETTER)]
    rule = f" Lower is better for {', '.join(better)}." if better else ""
    dots = [looks[g.variant] for g in members]
    return Table(
        "evaluations",
        "Samples and reconstructions",
        ["variant", *labels.values()],
        rows,
        frame,
        measured_how(visible, labels) + rule,
        dots,
    )


def _estimates(group: Group, columns: list[Column]) -> list[Cell]:
    return [estimate_cell(group.estimates.get(c.name), c.digits) for c in columns]


def _floors(columns: list[Column], floors: dict[str, float]) -> list[Cell]:
    return [Cell(shown(floors[c.name], c.digits) if c.name in floors else "") for c in columns]


def _verdict_cell(group: Group) -> Cell:
    judged = group.with_verdict
    lines = [f"{verdict} {count}/{judged}" for verdict, count in group.counts.items()]
    lines += [f"{count} {state}" for state, count in group.states.items()]
    share = group.healthy_interval
    tone = "" if not judged else "good" if group.healthy == judged else "mixed" if group.healthy else "bad"
    return Cell("\n".join(lines), f"healthy [{share[0]:.0%}, {share[1]:.0%}]" if share else "", tone)


def _collapse_cell(group: Group) -> Cell:
    steps = group.collapse_steps
    if not steps:
        return Cell("never" if group.with_verdict else "-")
    middle = f"{np.median(steps):g}"
    span = f"{steps[0]} to {steps[-1]}" if steps[0] != steps[-1] else ""
    return Cell(middle, "; ".join(filter(None, (span, f"{group.healthy} never" if group.healthy else ""))))


def _verdict_numbers(group: Group, columns: list[Column]) -> dict[str, Any]:
    low, high = group.healthy_interval or (None, None)
    steps = group.collapse_steps
    row: dict[str, Any] = {"variant": group.variant, **group.point, "seeds": len(group.results)}
    row |= {verdict: group.counts.get(verdict, 0) for verdict in VERDICTS}
    row |= {"healthy_ci_low": low, "healthy_ci_high": high}
    row |= {
        "collapsed_at_median": float(np.median(steps)) if steps else None,
        "collapsed_at_first": steps[0] if steps else None,
        "collapsed_at_last": steps[-1] if steps else None,
    }
    for column in columns:
        found = group.estimates.get(column.name)
        for part in ("mean", "sd", "ci_low", "ci_high", "n", "seeds"):
            row[f"{column.name} {part}"] = getattr(found, part) if found else (0 if part == "n" else None)
    return row


def gap_table(groups: list[Group], settings: ReportSettings) -> Table | None:
    """Rank gap (target minus prediction) per bin of t: mean over seeds of the median of the last probes."""
    numbers, rows = [], []
    bins = max((len(gap_names(g)) for g in groups), default=0)
    for group in groups:
        names, cells = gap_names(group), []
        for index, name in enumerate(names):
            values = group.probed(name, settings)
            found = estimate(list(values.values()), values)
            cells.append(estimate_cell(found, 2, signed=True))
            if found is not None:
                span = {"t_low": index / len(names), "t_high": (index + 1) / len(names)}
                numbers.append({"variant": group.variant, **group.point, **span, **vars(found)})
        if any(c.text != "-" for c in cells) and len(names) == bins:
            rows.append([Cell(group.name), *cells])
    if not numbers:
        return None
    header = ["variant", *(f"t in [{i / bins:g}, {(i + 1) / bins:g}]" for i in range(bins))]
    note = "Effective rank of the clean target minus that of the clean prediction, at token level. Positive: the denoiser is a low-rank filter."
    return Table("rank_gap", "Rank gap by time", header, rows, pd.DataFrame(numbers), note)


def gap_names(group: Group) -> list[str]:
    """The names of a group's rank gaps, in the order of their bins of t."""
    names = {n for r in group.results for n in r.metrics if n.startswith(RANK_GAP)}
    return sorted(names, key=lambda n: int(n.removeprefix(RANK_GAP)))


def cost_table(groups: list[Group], looks: dict[str, str]) -> Table | None:
    """Cost of every group, including failed trials; None if nothing has run."""
    numbers, rows, dots = [], [], []
    for group in groups:
        started = [r for r in group.results if r.seconds > 0 and r.description]
        if not started:
            continue
        cpu = sum(r.seconds * r.trial.resources.cpus / 3600 for r in started)
        gpu = sum(r.seconds * r.trial.resources.gpus / 3600 for r in started)
        speeds = [s for r in started if (s := _images_per_second(r)) is not None]
        speed = estimate(speeds)
        parameters = next((p for r in group.finished if (p := parameters_in(r.folder)) is not None), None)
        steps = max(r.step for r in started)
        flops = next((n for r in started if (n := r.record.flops_per_image)), None)
        numbers.append(
            {
                "variant": group.variant,
                **group.point,
                "trials": len(started),
                "steps": steps,
                "parameters": parameters,
                "flops_per_image": flops,
                "training_flops": flops and flops * sum(_images(r) for r in started),
                "images_per_second": speed.mean if speed else None,
                "cpu_hours": cpu,
                "gpu_hours": gpu,
                "cpu_hours_a_trial": cpu / len(started),
                "gpu_hours_a_trial": gpu / len(started),
            }
        )
        hours, unit = (gpu, "GPU-h") if gpu else (cpu, "CPU-h")
        rows.append(
            [
                Cell(group.name),
                Cell(str(len(started))),
                Cell(f"{steps:,}"),
                Cell(f"{parameters:,}" if parameters else "-"),
                Cell(short_count(flops) if flops else "-"),
                Cell(f"{speed.mean:,.0f}" if speed else "-"),
                Cell(f"{hours / len(started):.4f} {unit}"),
                Cell(f"{hours:.3f} {unit}"),
            ]
        )
        dots.append(looks[group.variant])
    if not rows:
        return None
    header = ["variant", "trials", "steps", "parameters", "FLOPs per image", "images/s", "per trial", "all seeds"]
    note = (
        "Hours for which trials held their CPUs or GPUs, including probes, images and checkpoints, without evaluation. Images per second: "
        "of training steps alone, median over log intervals, mean over seeds. Parameters: weights of the deployed network. "
        "FLOPs: of the forward and backward passes of a training step, per image."
    )
    return Table("cost", "Cost", header, rows, pd.DataFrame(numbers), note, dots)


def _images(result: Result) -> int:
    return result.step * result.trial.training.batch_size


def _images_per_second(result: Result) -> float | None:
    steps, seconds = result.history.series("seconds/train")
    made = np.diff(steps, prepend=0)
    kept = (seconds > 0) & (made > 0)
    if not kept.any():
        return None
    return float(np.median(made[kept] / seconds[kept])) * result.trial.training.batch_size


def trial_table(groups: list[Group], columns: list[Column], settings: ReportSettings) -> Table:
    """One row per trial: state, verdict, values and cost."""
    numbers, rows = [], []
    for group in groups:
        for result in group.results:
            judged = group.judged[result.seed]
            numbers.append(
                {
                    "id": result.id,
                    "variant": result.variant,
                    **result.point,
                    "size": result.size,
                    "seed": result.seed,
                    "state": result.state,
                    "verdict": judged.verdict,
                    "judged_against": ("control" if judged.by_control else "bounds") if judged.verdict else None,
                    "collapsed_at": judged.collapsed_at,
                    "step": result.step,
                    "seconds": round(result.seconds, 1),
                    "error": result.error,
                    **{c.name: value_of(result, c.name, settings) if result.finished else None for c in columns},
                }
            )
            state = f"{result.state}: {result.error}" if result.error else result.state
            at = "-" if judged.collapsed_at is None else str(judged.collapsed_at)
            cells = (
                result.id,
                group.name,
                str(result.seed),
                state,
                judged.verdict or "-",
                at,
                f"{result.step}/{result.steps}",
            )
            rows.append([*map(Cell, cells), Cell(f"{result.seconds:.0f}")])
    header = ["trial", "variant", "seed", "state", "verdict", "collapsed at step", "steps", "seconds"]
    return Table(
        "trials",
        f"{len(rows)} trials with their seeds, states, verdicts and cost",
        header,
        rows,
        pd.DataFrame(numbers),
        folded=True,
    )
