"""The GPU of a process that runs trials in sequence: whether it still works, and its memory."""

from __future__ import annotations

import gc

import torch


def gpu_is_lost() -> bool:
    """Whether CUDA has failed for good in this process, as after an illegal access: all later calls fail too."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # torch raises several kinds
        return True
    return False


def free_memory() -> None:
    """Release GPU memory of ended trials, so that other processes can use it."""
    if torch.cuda.is_initialized():
        gc.collect()  # compiled blocks are reference cycles
        torch.cuda.empty_cache()
