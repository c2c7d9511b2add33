"""A trial under torchrun, which starts its processes on one machine or on several."""

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
    """Rank of this process, or None where torchrun did not start it."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def with_its_processes(trial: PlannedTrial) -> PlannedTrial:
    """The trial with as many processes, and GPUs where it has some, as torchrun has started; its id is the same.

    Raises:
        BadInput: the spec asks for another number, or the batch is too small for so many.
    """
    size, resources = int(os.environ["WORLD_SIZE"]), trial.fields.resources
    if resources.processes not in (None, size):
        raise BadInput(f"resources.processes is {resources.processes}, but torchrun started {size} processes")
    if size > trial.fields.training.batch_size // trial.fields.training.grad_accum_steps:
        raise BadInput(f"torchrun started {size} processes, but a batch has fewer images than that")
    changed = {"processes": size, "gpus": float(size) if resources.gpus else 0.0}
    fields = trial.fields.model_copy(update={"resources": resources.model_copy(update=changed)})
    return replace(trial, fields=fields)


@contextlib.contextmanager
def gathered(home: Home, trial: PlannedTrial) -> Iterator[Peers]:
    """This process leads those that torchrun has started.

    Raises:
        PeerLost: one of them is gone.
    """
    from dsd_lab.core.peers import joined  # imports torch
    from dsd_lab.core.training.trainer import pick_device

    resources = trial.fields.resources
    with joined("env:", 0, resources.team, resources.patience, pick_device(resources.gpus)) as peers:
        yield peers
