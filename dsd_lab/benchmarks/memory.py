"""The most memory that was held since a moment."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Any

import torch

from dsd_lab.benchmarks.parts import kernel_by_kernel
from dsd_lab.core.trainer import Trainer
from dsd_lab.storages import Storages

_PROCESS = Path("/proc/self")


def forget_peak(device: torch.device) -> None:
    """Measure the peak from here on; where the kernel cannot forget, a process keeps that of its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Bytes and what they are: all that the process holds (CPU), or tensors on the GPU."""
    if device.type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(device), "of": "GPU tensors"}
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (_PROCESS / "status").read_text().splitlines()
        told = next(line for line in lines if line.startswith("VmHWM:"))
        return {"bytes": int(told.split()[1]) * 1024, "of": "process"}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of": "process"}


def tensor_bytes(trainer: Trainer) -> int:
    """Bytes of tensors at most in one of the trainer's steps: weights, moments and copies, and what a step makes beside them.

    This is what a GPU's allocator would tell; a process on the CPU holds libraries and freed memory besides.
    """
    weights = {p.data_ptr(): p.nbytes for part in trainer.kept.values() for p in part.parameters()}
    moments = sum(v.nbytes for p in trainer.trained.parameters() for v in trainer.optimiser.state_of(p).values())
    with kernel_by_kernel(trainer), Storages() as storages:
        trainer.train_step()
    return sum(weights.values()) + moments + storages.most
