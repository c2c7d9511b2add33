"""What a measured trial says of a whole one: shares of its time."""

from __future__ import annotations

from typing import Any

from dsd_lab.planning.measured import EVENTS, event_counts
from dsd_lab.specs.trial import Trial


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


def _median(kind: dict[str, Any], what: str) -> float:
    return float(kind[what]["median"]) if what in kind else 0.0
