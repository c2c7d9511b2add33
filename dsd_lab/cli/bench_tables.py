"""Print the figures of `dsd-lab bench` as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from dsd_lab.cli.console import table_console
from dsd_lab.units import duration, readable, short_count

THREADS = (1, 2, 4)
"""Numbers of threads that `bench --data` reads with."""
_SHARES = ("steps", "probes", "images", "checkpoints", "events")


def print_answer(answer: dict[str, Any]) -> None:
    """Print the speed and the shares of time of whole trials, one row per trial."""
    console = table_console()
    trials = answer["trials"]
    for table in (_speed(trials), _whole(trials), *([_together(trials)] if "together" in trials[0] else [])):
        console.print(table)
        console.print()
    console.print(f"{_where(answer)}; medians of {answer['repeats']} repeats (minimum to maximum)", highlight=False)


def print_reading(answer: dict[str, Any]) -> None:
    """Print images per second of reading, one line a form."""
    console = table_console()
    for found in answer["reading"]:
        forms = found["forms"]
        table = _table(
            "images", *(f"{threads} thread{'s' * (threads > 1)}" for threads in THREADS), "of a folder", "per image"
        )
        for form in forms:
            speeds = [form["images_per_second"][threads] for threads in THREADS]
            times = speeds[0]["median"] / forms[0]["images_per_second"][THREADS[0]]["median"]
            cells = [f"{speed['median']:,.0f}/s {_range(speed, 0)}" for speed in speeds]
            table.add_row(form["form"], *cells, f"{times:.1f} x", readable(form["bytes_per_image"]))
        channels, height, width = forms[0]["shape"]
        first = f"{found['data']}: {forms[0]['images']:,} images of {channels} x {height} x {width}, batches of {found['batch_size']}"
        console.print(first, highlight=False)
        console.print(table)
        console.print()
    console.print(f"{_where(answer)}; medians of {answer['repeats']} repeats (minimum to maximum)", highlight=False)


def _where(answer: dict[str, Any]) -> str:
    machine, made = answer["machine"], answer["provenance"]
    return (
        f"{machine['processor']}, load {machine['load']:g} at the start; Python {made['python']}, torch "
        f"{made['versions']['torch']}, training code {made['code']}"
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("trial", "images") else "right", no_wrap=True)
    return table


def _speed(trials: list[dict[str, Any]]) -> Table:
    table = _table(
        "trial",
        "images/s",
        "ms per step",
        "FLOPs/image",
        "ceiling",
        "MFU",
        "memory",
        "of tensors",
        "planned",
    )
    for trial in trials:
        step = trial["step_seconds"]
        table.add_row(
            _label(trial, trials),
            f"{trial['images_per_second']['median']:,.0f} {_range(trial['images_per_second'], 0)}",
            f"{_milli(step['median'])} ({_milli(step['min'])} to {_milli(step['max'])})",
            short_count(trial["flops_per_image"]),
            short_count(trial["ceiling_flops_per_second"]["median"]) + "/s",
            f"{trial['utilisation']['median']:.1%}",
            *(f"{trial['memory'][what] / 2**20:,.0f} MiB" for what in ("bytes", "tensors", "planned")),
        )
    return table


def _whole(trials: list[dict[str, Any]]) -> Table:
    table = _table("trial", "time", *_SHARES)
    table.title, table.title_justify = "shares of a whole trial", "left"
    for trial in trials:
        shown = [f"{trial['shares'][name]:.2%}" for name in _SHARES]
        table.add_row(_label(trial, trials), duration(trial["trial_seconds"]), *shown)
    return table


def _together(trials: list[dict[str, Any]]) -> Table:
    """Speed of several processes; the efficiency is the product of its last two columns."""
    table = _table("trial", "processes", "images/s", "of one", "efficiency", "small batches", "exchange")
    table.title, table.title_justify = "one trial on several processes", "left"
    for trial in trials:
        found = trial["together"]
        rates = [found[name] for name in ("images_per_second", "images_per_second_of_one")]
        table.add_row(
            _label(trial, trials),
            str(found["processes"]),
            *(f"{rate['median']:,.0f} {_range(rate, 0)}" for rate in rates),
            *(
                f"{found[name]['median']:.2f} {_range(found[name], 2)}"
                for name in ("efficiency", "small_batches", "exchange")
            ),
        )
    return table


def _label(trial: dict[str, Any], trials: list[dict[str, Any]]) -> str:
    """Name of the trial, with its spec if there are several."""
    several = len({other["spec"] for other in trials}) > 1
    return f"{Path(trial['spec']).stem} {trial['name']}" if several else str(trial["name"])


def _range(spread: dict[str, float], digits: int) -> str:
    return f"({spread['min']:,.{digits}f} to {spread['max']:,.{digits}f})"


def _milli(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
