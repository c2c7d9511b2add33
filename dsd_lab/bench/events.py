"""Time what a trial does between steps: records, probes, image grids, checkpoints, and their lines in the spool."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsd_lab.bench.clock import Clock
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Event, Logged, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.runs.spool_writer import Spool

_KINDS: dict[type[Event], str] = {Logged: "record", Probed: "probe", Drew: "images", Checkpointed: "checkpoint"}


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace a function of a module or a method of an object within the block.

    Args:
        owner: module or object.
        name: of the function.
        make: returns the replacement for the original.
    """
    own, there = name in vars(owner), getattr(owner, name)
    setattr(owner, name, make(there))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, there)
        else:
            delattr(owner, name)  # uncovers the method of the class


@contextlib.contextmanager
def _every_event_at_every_step(trainer: Trainer, folder: Path, start: int) -> Iterator[None]:
    """Make the trainer emit every kind of event at every step within the block, checkpoints into a folder."""
    before = trainer.trial, trainer.folder, trainer.step
    trial = trainer.trial
    watch = {"log_every": 1, "images_every": 1, "checkpoint_every": 1}
    changes = {
        "probe": trial.probe.model_copy(update={"every": 1}),
        "observation": trial.observation.model_copy(update=watch),
    }
    trainer.trial, trainer.folder, trainer.step = trial.model_copy(update=changes), folder, start
    try:
        yield
    finally:
        trainer.trial, trainer.folder, trainer.step = before


def event_seconds(
    trainer: Trainer, clock: Clock, scratch: Path, start: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each kind of event: `made` (by the trainer) and `told` (writing to the spool), one value per repeat.

    `status` is the time of one status file; a trial writes at most one per second.

    Args:
        trainer: is trained for some steps.
        clock: of its device.
        scratch: empty folder on the disk of the trials.
        start: first step.
        repeats: number of values; one more is measured first and dropped.

    Raises:
        BadInput: the trial diverges within these steps.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"made": [], "told": []} for name in _KINDS.values()}
    inside = 0.0

    def outside_of_steps(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped() -> Any:
            nonlocal inside
            began = clock.now()
            try:
                return step()
            finally:
                inside += clock.now() - began

        return wrapped

    def enough() -> bool:
        return len(found["record"]["made"]) > repeats

    folder = TrialFolder(scratch / "trial")
    folder.root.mkdir(parents=True)
    spool = Spool(folder.spool, folder.images, None)
    with (
        contextlib.closing(spool),
        _every_event_at_every_step(trainer, folder.checkpoints, start),
        replaced(trainer, "train_step", outside_of_steps),
        contextlib.closing(trainer.run(enough, spool.flush)) as events,  # type: ignore[type-var]
    ):
        while True:
            inside, began = 0.0, clock.now()
            event = next(events, None)
            ended = clock.now()
            if event is None:
                break
            if isinstance(event, Diverged):
                raise BadInput(f"{event.reason}; a trial that diverges at once cannot be timed")
            spool.append(event)
            if type(event) in _KINDS:
                kind = found[_KINDS[type(event)]]
                kind["made"].append(ended - began - inside)
                kind["told"].append(clock.now() - ended)
    for kind in found.values():
        for values in kind.values():
            values[:] = (values[1:] or values)[:repeats]
    found["status"] = {"made": [0.0] * repeats, "told": [_status(folder, clock) for _ in range(repeats)]}
    return found


def _status(folder: TrialFolder, clock: Clock) -> float:
    began = clock.now()
    folder.write_progress(step=1, seconds=1.0, updated=time.time())
    return clock.now() - began
