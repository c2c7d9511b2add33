"""What the project promises about its speed, and whether figures keep to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound for a figure of every trial, or of every sweep."""

    name: str
    limit: float
    what: str
    path: tuple[str, ...]
    """Keys that lead to the figure in a trial's or a sweep's answer."""
    unit: str = ""
    """`s`, else a limit of more than 1 is a ratio and one below it a share."""
    least: bool = False
    """Whether the limit is the least that the figure should be, not the most."""
    of: tuple[tuple[str, str], ...] = ()
    """Keys of a trial's answer and the values that they must have; others the target does not concern."""


TRIALS = (
    Target("loop", 1.03, "time of a step over a bare loop's", ("loop", "ratio", "median")),
    Target("probes", 0.03, "share of latent metrics", ("shares", "probes")),
    Target("events", 0.01, "share of records, spool and status", ("shares", "events")),
    Target("sampling", 1 / 0.9, "time of samples over their forward passes'", ("evaluation", "sampling", "median")),
    Target("features", 1 / 0.9, "time of features over their forward passes'", ("evaluation", "features", "median")),
    Target("checkpoints", 0.02, "share of checkpoints", ("shares", "checkpoints")),
    Target("planned", 0.15, "how far memory is off what `plan` says", ("memory", "off_plan")),
    *(
        Target(
            f"used, {size}", limit, "of a GPU's ceiling", ("utilisation", "median"), "", True,
            (("on", "cuda"), ("size", size)),
        )
        for size, limit in (("small256", 0.25), ("middle256", 0.35), ("base256", 0.45))
    ),
)  # fmt: skip
START = (
    Target("help", 0.25, "`dsd-lab --help`", ("help", "median"), "s"),
    Target("error", 1, "a spec with an unknown key", ("error", "median"), "s"),
    Target("plan", 3, "plan of a spec whose shapes were counted before", ("plan", "median"), "s"),
)
SWEEPS = (
    Target("first step", 15, "from Enter to the end of the first step", ("first_step_seconds",), "s"),
    Target("occupancy", 1.10, "time over the trials' own, per slot", ("occupancy",)),
    Target("overhead", 0.3, "seconds of a trial besides its own work", ("overhead_seconds",), "s"),
    Target("memory", 1.10, "of a worker at the end over that after a fifth of the trials", ("memory_growth",)),
    Target("handles", 1.10, "of a worker at the end over those after a fifth of the trials", ("handles_growth",)),
)


def verdicts(answers: list[dict[str, Any]], targets: tuple[Target, ...] = TRIALS) -> list[dict[str, Any]]:
    """Each target with the figure of the trial or sweep that is furthest from it; a target that concerns none is left out."""
    found = []
    for target in targets:
        figures = {
            _at(answer, target.path): answer
            for answer in answers
            if answer.get(target.path[0]) and all(answer.get(key) == value for key, value in target.of)
        }
        if figures:
            worst = (min if target.least else max)(figures)
            found.append(
                {
                    "name": target.name,
                    "what": target.what,
                    "bound": ("at least " if target.least else "at most ") + _shown(target, target.limit, "g"),
                    "figure": worst,
                    "measured": _shown(target, worst, ".3f"),
                    "of": " ".join(filter(None, (figures[worst].get("spec"), figures[worst]["name"]))),
                    "met": worst >= target.limit if target.least else worst <= target.limit,
                }
            )
    return found


def _shown(target: Target, figure: float, digits: str) -> str:
    """Seconds, a ratio or a share."""
    if target.unit or target.limit > 1:
        return f"{round(figure, 3):{digits}} {target.unit}".rstrip()
    return f"{figure:.2%}"


def _at(content: Any, path: tuple[str, ...]) -> float:
    for key in path:
        content = content[key]
    return float(content)
