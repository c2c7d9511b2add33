"""What a measured trial says of a whole one: shares of its time, and whether the targets for them are met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsd_lab.planning.measured import EVENTS, event_counts
from dsd_lab.specs.trial import Trial


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

    def concerns(self, trial: dict[str, Any]) -> bool:
        """Whether the figure of a trial, or of a sweep, is to keep to the limit."""
        return bool(trial.get(self.path[0])) and all(trial.get(key) == value for key, value in self.of)

    def kept(self, figure: float) -> bool:
        """Whether a figure is on the right side of the limit."""
        return figure >= self.limit if self.least else figure <= self.limit


TARGETS = (
    Target("loop", 1.03, "time of a step over a bare loop's", ("loop", "ratio", "median")),
    Target("probes", 0.03, "share of latent metrics", ("shares", "probes")),
    Target("events", 0.01, "share of records, spool and status", ("shares", "events")),
    Target("sampling", 1 / 0.9, "time of samples over their forward passes'", ("evaluation", "sampling", "median")),
    Target("features", 1 / 0.9, "time of features over their forward passes'", ("evaluation", "features", "median")),
    Target("checkpoints", 0.02, "share of checkpoints", ("shares", "checkpoints")),
    Target("planned", 0.15, "how far memory is off what `plan` says", ("memory", "off_plan")),
    *(
        Target(
            f"used, {size}",
            limit,
            "of a GPU's ceiling",
            ("utilisation", "median"),
            least=True,
            of=(("on", "cuda"), ("size", size)),
        )
        for size, limit in (("small256", 0.25), ("middle256", 0.35), ("base256", 0.45))
    ),
)

START_TARGETS = (
    Target("help", 0.25, "`dsd-lab --help`", ("help", "median"), "s"),
    Target("error", 1, "a spec with an unknown key", ("error", "median"), "s"),
    Target("plan", 3, "plan of a spec whose shapes were counted before", ("plan", "median"), "s"),
)
SWEEP_TARGETS = (
    Target("first step", 15, "from Enter to the end of the first step", ("first_step_seconds",), "s"),
    Target("occupancy", 1.10, "time over the trials' own, a slot", ("occupancy",)),
    Target("beside", 0.3, "what a trial waits for beside its own work", ("beside_seconds",), "s"),
    Target("memory", 1.10, "of a worker at the end over that after a fifth of the trials", ("memory_growth",)),
    Target("handles", 1.10, "of a worker at the end over those after a fifth of the trials", ("handles_growth",)),
)


def event_medians(figures: dict[str, Any]) -> dict[str, float]:
    """Seconds of one of each of `EVENTS`, its line in the spool with it."""
    found = {}
    for name in EVENTS:
        kind = figures["events"][name]
        found[name] = sum(kind[what]["median"] for what in ("made", "told") if what in kind)
    return found


def shares(trial: Trial, figures: dict[str, Any]) -> dict[str, float]:
    """Shares of a whole trial's time by the medians; they add up to 1.

    `events` are records of losses, all lines of the spool, and one status file a second; `probes`,
    `images` and `checkpoints` are what making them takes.
    """
    counts, events = event_counts(trial), figures["events"]
    made = {name: counts[name] * _median(events[name], "made") for name in EVENTS}
    told = sum(counts[name] * _median(events[name], "told") for name in EVENTS)
    seconds = {
        "steps": trial.training.steps * figures["step_seconds"]["median"],
        "probes": made["probe"],
        "images": made["images"],
        "checkpoints": made["checkpoint"],
        "events": made["record"] + told,
    }
    whole = sum(seconds.values())
    status = _median(events["status"], "told") * whole  # at most one a second
    seconds["events"] += status
    return {name: value / (whole + status) for name, value in seconds.items()}


def verdicts(trials: list[dict[str, Any]], targets: tuple[Target, ...] = TARGETS) -> list[dict[str, Any]]:
    """Each target beside the figure of the trial, or the sweep, that is furthest from it; none of what none does."""
    found = []
    for target in targets:
        those = [trial for trial in trials if target.concerns(trial)]
        if not those:
            continue
        furthest = min if target.least else max
        worst = furthest(those, key=lambda trial: _at(trial, target.path))
        figure = _at(worst, target.path)
        found.append(
            {
                "name": target.name,
                "what": target.what,
                "limit": target.limit,
                "least": target.least,
                "unit": target.unit,
                "figure": figure,
                "spec": worst["spec"],
                "trial": worst["name"],
                "met": target.kept(figure),
            }
        )
    return found


def _median(kind: dict[str, Any], what: str) -> float:
    return float(kind[what]["median"]) if what in kind else 0.0


def _at(content: dict[str, Any], path: tuple[str, ...]) -> float:
    found: Any = content
    for key in path:
        found = found[key]
    return float(found)
