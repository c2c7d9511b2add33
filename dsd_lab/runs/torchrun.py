"""A trial under torchrun, which starts its ranks on one or more machines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.specs.sweep import PlannedTrial

if TYPE_CHECKING:
    from dsd_lab.core.peers import Peers


def torchrun_rank() -> int | None:
    """Rank of this process; None where torchrun did not start it."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def with_its_processes(trial: PlannedTrial) -> PlannedTrial:
    """The trial with torchrun's number of processes, and of GPUs if it uses any. Its id stays the same.

    Raises:
        BadInput: the spec requires another number, or the batch is too small.
    """
    size, resources = int(os.environ["WORLD_SIZE"]), trial.fields.resources
    if resources.processes not in (None, size):
        raise BadInput(f"resources.processes is {resources.processes}, but torchrun started {size} processes")
    if size > trial.fields.training.batch_size // trial.fields.training.grad_accum_steps:
        raise BadInput(f"torchrun started {size} processes, but a batch has fewer images")
    changed = {"processes": size, "gpus": float(size) if resources.gpus else 0.0}
    fields = trial.fields.model_copy(update={"resources": resources.model_copy(update=changed)})
    return replace(trial, fields=fields)


@contextlib.contextmanager
def gathered(home: Home, trial: PlannedTrial) -> Iterator[Peers]:
    """Lead the ranks that torchrun started.

    Raises:
        PeerLost: a rank is gone.
    """
    from dsd_lab.core.peers import joined  # imports torch
    from dsd_lab.core.training.trainer import pick_device
    from dsd_lab.runs.peers import dismiss

    resources = trial.fields.resources
    with joined("env:", 0, resources.team, resources.patience, pick_device(resources.gpus)) as peers:
        yield peers
        dismiss(peers)
