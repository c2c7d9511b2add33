"""Images, FLOPs, speed, MFU and memory of a training record."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsd_lab.home.trial_records import Speed
from dsd_lab.planning.estimates import Shape
from dsd_lab.provenance import device_name
from dsd_lab.specs.trial import Trial

PEAKS = {
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
}
"""Peak dense FLOP/s from data sheets, by part of the GPU's name and precision. TF32 is not used, so fp32 means the
plain units. Other devices have no MFU."""
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Meter:
    """Counts for a trial on a device.

    Args:
        trial: its fields.
        shape: FLOPs of its steps.
        device: where it trains.
    """

    trial: Trial
    shape: Shape
    device: torch.device

    def seen(self, step: int) -> dict[str, int | float]:
        """Training images and FLOPs up to a step. They depend on the trial alone."""
        return {"images": step * self.trial.training.batch_size, "flops": self.shape.flops_until(self.trial, step)}

    def speed(self, since: int, step: int, seconds: float) -> Speed:
        """Speed and MFU of the steps from `since` to `step`, which took `seconds`."""
        memory = int(peak_memory(self.device)["bytes"])
        if step <= since or seconds <= 0:
            return Speed(peak_memory_bytes=memory)
        made = self.shape.flops_until(self.trial, step) - self.shape.flops_until(self.trial, since)
        peak = peak_flops(self.device, self.trial.training.precision)
        peak = None if peak is None else peak * self.trial.resources.team
        return Speed(
            images_per_second=(step - since) * self.trial.training.batch_size / seconds,
            peak_memory_bytes=memory,
            **({} if peak is None else {"mfu": made / seconds / peak}),
        )


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s from `PEAKS`; None for a CPU or an unlisted GPU."""
    name = device_name(device) if device.type == "cuda" else ""
    return next((rates[precision] for part, rates in PEAKS.items() if part in name), None)


def forget_peak(device: torch.device) -> None:
    """Reset the peak of the memory. Where the kernel cannot, the CPU peak covers the whole life of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Peak memory in bytes, and what was measured: the whole process (CPU) or tensors on the GPU."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "GPU tensors"}
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (_PROCESS / "status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return {"bytes": int(peak.split()[1]) * 1024, "of": "process"}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of": "process"}
