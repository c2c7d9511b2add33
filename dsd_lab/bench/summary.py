"""Shares of a whole trial's time, from its measurements."""

from __future__ import annotations

from typing import Any

from dsd_lab.planning.measured import EVENTS, event_counts
from dsd_lab.specs.trial import Trial


def event_medians(figures: dict[str, Any]) -> dict[str, float]:
    """Seconds per event of each of `EVENTS`, writing to the spool included."""
    found = {}
    for name in EVENTS:
        kind = figures["events"][name]
        found[name] = sum(kind[what]["median"] for what in ("made", "told") if what in kind)
    return found


def shares(trial: Trial, figures: dict[str, Any]) -> dict[str, float]:
    """Shares of a whole trial's time by medians; they add up to 1.

    `events` covers records of losses, all spool lines, and a status file per second. `probes`, `images`
    and `checkpoints` cover computing them.
    """
    counts, events = event_counts(trial), figures["events"]
    made = {name: counts[name] * _median(events[name], "made") for name in EVENTS}
    writing = sum(counts[name] * _median(events[name], "told") for name in EVENTS)
    seconds = {
        "steps": trial.training.steps * figures["step_seconds"]["median"],
        "probes": made["probe"],
        "images": made["images"],
        "checkpoints": made["checkpoint"],
        "events": made["record"] + writing,
    }
    whole = sum(seconds.values())
    status = _median(events["status"], "told") * whole  # at most one per second
    seconds["events"] += status
    return {name: value / (whole + status) for name, value in seconds.items()}


def _median(kind: dict[str, Any], what: str) -> float:
    return float(kind[what]["median"]) if what in kind else 0.0
