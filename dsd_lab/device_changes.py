"""Which device trained a trial: one from its first step to its last, unless it went on on another one.

Numbers of two kinds of GPU, or of two processors, differ in their last bits, so that a trial which changed
in mid-training equals neither. That is no reason to lose it; its records say so.
"""

from __future__ import annotations

from typing import Any

import torch

from dsd_lab.code_changes import went_on
from dsd_lab.home import TrialFolder
from dsd_lab.provenance import processor


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def trained_on(folder: TrialFolder, step: int, name: str) -> list[dict[str, Any]]:
    """Devices with the step from which each trained, where one of this name goes on from a step."""
    origin = (folder.description() or {}).get("provenance")  # of the attempt before
    known = folder.status().get("trained_on") or []
    if not known and origin:
        before = origin["machine"]["processor"] if origin["device"] == "cpu" else origin["device"]
        known = [{"device": before, "step": 0}]
    return went_on(known, "device", name, step)
