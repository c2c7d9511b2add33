"""Which device trained a trial: one from its first step to its last, unless it went on on another one.

Numbers of two kinds of GPU, or of two processors, differ in their last bits, so that a trial which changed
in mid-training equals neither. That is no reason to lose it; its records say so.
"""

from __future__ import annotations

from typing import Any

from dsd_lab.code_changes import told_in_turn, went_on
from dsd_lab.home import TrialFolder


def trained_on(folder: TrialFolder, step: int, name: str) -> list[dict[str, Any]]:
    """Devices with the step from which each trained, where one of this name goes on from a step."""
    origin = (folder.description() or {}).get("provenance")  # of the attempt before
    known = folder.status().get("trained_on") or []
    if not known and origin:
        before = origin["machine"]["processor"] if origin["device"] == "cpu" else origin["device"]
        known = [{"device": before, "step": 0}]
    return went_on(known, "device", name, step)


def told_devices(status: dict[str, Any]) -> str | None:
    """`NVIDIA A100 from step 0, NVIDIA H100 from step 800`; None of a trial that one device trained."""
    return told_in_turn(status.get("trained_on") or [], "device")
