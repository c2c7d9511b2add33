"""The figures of `dsd-lab bench` as tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dsd_lab.display import duration

_SHARES = ("steps", "probes", "images", "checkpoints", "events")


def print_answer(answer: dict[str, Any]) -> None:
    """Print speed, parts of a step, shares of a trial, start-up and targets, one line a trial in each."""
    console = Console(width=None if Console().is_terminal else 200)
    trials = answer["trials"]
    for table in (_speed(trials), _parts(trials), _whole(trials)):
        console.print(table)
        console.print()
    start = ", ".join(f"{name} {s['median']:.2f} s {_range(s, 2)}" for name, s in answer["start_up"].items())
    console.print(f"start-up of a process: {start}", highlight=False)
    machine, made = answer["machine"], answer["provenance"]
    console.print(
        f"{machine['processor']}, load {machine['load']:g} at the start; Python {made['python']}, torch "
        f"{made['versions']['torch']}, training code {made['code']}; medians of "
        f"{answer['repeats']} repeats (least to greatest)",
        highlight=False,
    )
    console.print(_targets(answer["targets"], trials))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("trial", "target", "of") else "right", no_wrap=True)
    return table


def _speed(trials: list[dict[str, Any]]) -> Table:
    table = _table(
        "trial",
        "images/s",
        "ms a step",
        "FLOPs/image",
        "ceiling",
        "used",
        "bare loop",
        "ours/bare",
        "CPU time",
        "eager fp32/ours",
        "memory",
    )
    for trial in trials:
        step, loop = trial["step_seconds"], trial["loop"]
        mark = "" if loop["losses"] == "written out" else "*"
        table.add_row(
            _label(trial, trials),
            f"{trial['images_per_second']['median']:,.0f} {_range(trial['images_per_second'], 0)}",
            f"{_milli(step['median'])} ({_milli(step['min'])} to {_milli(step['max'])})",
            _flops(trial["flops_per_image"]),
            _flops(trial["ceiling_flops_per_second"]["median"]) + "/s",
            f"{trial['utilisation']['median']:.1%}",
            _milli(loop["bare_step_seconds"]["median"]),
            f"{loop['ratio']['median']:.3f}{mark} {_range(loop['ratio'], 3)}",
            f"{loop['cpu_ratio']['median']:.3f}",
            f"{trial['over_eager']['median']:.2f} {_range(trial['over_eager'], 2)}",
            f"{trial['memory']['bytes'] / 2**20:.0f} MiB",
        )
    if any(trial["loop"]["losses"] != "written out" for trial in trials):
        table.caption = "*: the bare loop takes the losses and random numbers from dsd_lab, and writes out the rest"
    return table


def _parts(trials: list[dict[str, Any]]) -> Table:
    names = list(trials[0]["parts"])
    table = _table("trial", *names)
    table.title, table.title_justify = "ms of a step, timed part by part", "left"
    for trial in trials:
        parts = {name: trial["parts"][name]["median"] for name in names}
        whole = sum(parts.values())
        table.add_row(_label(trial, trials), *(f"{1e3 * s:.2f} {s / whole:>4.0%}" for s in parts.values()))
    return table


def _whole(trials: list[dict[str, Any]]) -> Table:
    stored = any("store" in trial for trial in trials)
    table = _table("trial", "time", *_SHARES, *(["store, beside it"] if stored else []))
    table.title, table.title_justify = "shares of a whole trial", "left"
    for trial in trials:
        shown = [f"{trial['shares'][name]:.2%}" for name in _SHARES]
        shown += [f"{trial['store']['share']:.2%}"] if stored else []
        table.add_row(_label(trial, trials), duration(trial["trial_seconds"]), *shown)
    return table


def _targets(targets: list[dict[str, Any]], trials: list[dict[str, Any]]) -> Table:
    table = _table("target", "at most", "measured", "", "of")
    for target in targets:
        ratio = target["limit"] > 1
        limit = f"{target['limit']:.2f}" if ratio else f"{target['limit']:.0%}"
        figure = f"{target['figure']:.3f}" if ratio else f"{target['figure']:.2%}"
        met = "met" if target["met"] else "missed"
        table.add_row(
            f"{target['name']}: {target['what']}",
            limit,
            figure,
            met,
            f"worst: {_label({'name': target['trial'], 'spec': target['spec']}, trials)}",
        )
    return table


def _label(trial: dict[str, Any], trials: list[dict[str, Any]]) -> str:
    """The trial's name, with its spec's where there are several."""
    several = len({other["spec"] for other in trials}) > 1
    return f"{Path(trial['spec']).stem} {trial['name']}" if several else str(trial["name"])


def _range(spread: dict[str, float], digits: int) -> str:
    return f"({spread['min']:,.{digits}f} to {spread['max']:,.{digits}f})"


def _milli(seconds: float) -> str:
    """Milliseconds, to three digits."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _flops(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
