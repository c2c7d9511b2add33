"""The figures of `dsd-lab bench` as tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import table_console
from dsd_lab.units import duration, short_count

_HELD = {"memory": 1024, "handles": 1}
"""What a worker holds, and how many of its units are shown as one."""
_SHARES = ("steps", "probes", "images", "checkpoints", "events")


def print_answer(answer: dict[str, Any]) -> None:
    """Print speed, parts of a step, shares of a trial, start-up and targets, one line a trial in each."""
    console = table_console()
    trials = answer["trials"]
    for table in (_speed(trials), _parts(trials), _whole(trials)):
        console.print(table)
        console.print()
    start = ", ".join(f"{name} {s['median']:.2f} s {_range(s, 2)}" for name, s in answer["start_up"].items())
    console.print(f"start-up of a process: {start}", highlight=False)
    console.print(f"{_where(answer)}; medians of {answer['repeats']} repeats (least to greatest)", highlight=False)
    console.print(_targets(answer["targets"], trials))


def print_sweeps(answer: dict[str, Any]) -> None:
    """Print what whole sweeps took, one line each, and targets."""
    console = table_console()
    table = _table("sweep", "trials", "slots", "time", "first step", "occupancy", "a trial", "beside it", *_HELD)
    for sweep in answer["sweeps"]:
        held = [(sweep[what], unit) for what, unit in _HELD.items()]
        table.add_row(
            sweep["name"],
            str(sweep["trials"]),
            str(sweep["slots"]),
            duration(sweep["wall_seconds"]),
            f"{sweep['first_step_seconds']:.1f} s",
            "" if sweep["occupancy"] is None else f"{sweep['occupancy']:.3f}",
            *("" if sweep[what] is None else f"{sweep[what]:.2f} s" for what in ("each_seconds", "beside_seconds")),
            *("not measured here" if pair is None else f"{pair[0] / u:.0f} to {pair[1] / u:.0f}" for pair, u in held),
        )
    table.caption = (
        "occupancy: time from the first trial's start to the last one's end, over the trials' own a slot; memory (MiB) and "
        "handles are of the largest worker, after a fifth of the trials and at the end"
    )
    for part in (table, _where(answer), _targets(answer["targets"], answer["sweeps"])):
        console.print(part, highlight=False)


def _where(answer: dict[str, Any]) -> str:
    machine, made = answer["machine"], answer["provenance"]
    return (
        f"{machine['processor']}, load {machine['load']:g} at the start; Python {made['python']}, torch "
        f"{made['versions']['torch']}, training code {made['code']}"
    )


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
        "of tensors",
        "planned",
    )
    for trial in trials:
        step, loop = trial["step_seconds"], trial["loop"]
        mark = "" if loop["losses"] == "written out" else "*"
        table.add_row(
            _label(trial, trials),
            f"{trial['images_per_second']['median']:,.0f} {_range(trial['images_per_second'], 0)}",
            f"{_milli(step['median'])} ({_milli(step['min'])} to {_milli(step['max'])})",
            short_count(trial["flops_per_image"]),
            short_count(trial["ceiling_flops_per_second"]["median"]) + "/s",
            f"{trial['utilisation']['median']:.1%}",
            _milli(loop["bare_step_seconds"]["median"]),
            f"{loop['ratio']['median']:.3f}{mark} {_range(loop['ratio'], 3)}",
            f"{loop['cpu_ratio']['median']:.3f}",
            f"{trial['over_eager']['median']:.2f} {_range(trial['over_eager'], 2)}",
            *(f"{trial['memory'][what] / 2**20:,.0f} MiB" for what in ("bytes", "tensors", "planned")),
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
    table = _table("target", "bound", "measured", "", "of")
    for target in targets:
        limit, figure = _bound(target)
        met = "met" if target["met"] else "missed"
        table.add_row(
            f"{target['name']}: {target['what']}",
            f"at least {limit}" if target["least"] else f"at most {limit}",
            figure,
            met,
            _of(target, trials),
        )
    return table


def _of(target: dict[str, Any], trials: list[dict[str, Any]]) -> str:
    """The trial, or the sweep, that is furthest from a target; none for what a process is timed for."""
    named = {"name": target["trial"], "spec": target["spec"]}
    return f"worst: {_label(named, trials)}" if target["trial"] else ""


def _bound(target: dict[str, Any]) -> tuple[str, str]:
    """The limit and the figure: seconds, a ratio or a share."""
    limit, figure = target["limit"], target["figure"]
    if target["unit"]:
        return f"{limit:g} {target['unit']}", f"{figure:.2f} {target['unit']}"
    return (f"{limit:.2f}", f"{figure:.3f}") if limit > 1 else (f"{limit:.0%}", f"{figure:.2%}")


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
