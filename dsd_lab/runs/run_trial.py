"""Run one trial in this process: train, spool, evaluate. Needs neither Ray nor MLflow."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

import torch

from dsd_lab.core.data import DataSet
from dsd_lab.core.data.progress import listening
from dsd_lab.core.peers import ALONE, Peers
from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.core.training.events import Diverged, Finished, Logged
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import BadInput, LabError, NoResources, PeerLost, is_disk_full
from dsd_lab.files.atomic import PRIVATE, write_atomic
from dsd_lab.files.locks import while_waiting
from dsd_lab.home.beginnings import record_beginning
from dsd_lab.home.home import Home
from dsd_lab.home.plugins import keep_plugins, loaded_digests
from dsd_lab.home.record_types import FORMAT
from dsd_lab.home.spool import sound_lines
from dsd_lab.home.trial_folder import ENDED, STOPPED, TrialFolder
from dsd_lab.home.trial_records import DataRecord, Provenance, TrialRecord
from dsd_lab.planning.estimates import cached_shape
from dsd_lab.planning.shared_steps import beginning_key, find_beginning
from dsd_lab.provenance import device_name, provenance, work_tree_diff
from dsd_lab.runs.continuity import code_of, trained_by, trained_on
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.gpu_state import free_memory as free_memory
from dsd_lab.runs.gpu_state import gpu_is_lost as gpu_is_lost
from dsd_lab.runs.meter import Meter, forget_peak
from dsd_lab.runs.peers import Team, started_here, trainer_among
from dsd_lab.runs.shared_beginning import begin_from, taken_over
from dsd_lab.runs.spool_writer import Spool
from dsd_lab.runs.trial_evaluations import STATUS_EVERY, Progress, draws, make_evaluations, missing_evaluations
from dsd_lab.runs.watchdog import Watchdog
from dsd_lab.specs.identity import canonical_fields, data_name
from dsd_lab.specs.part_fields import own_parts
from dsd_lab.specs.plugins import plugin_place
from dsd_lab.specs.registry import shown_metrics
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import SCHEMA_VERSION, Generation
from dsd_lab.training_code import training_code

_POLL_SECONDS = 1.0
"""Seconds between checks of a trial that another sweep holds."""


def run_trial(
    home: Home,
    trial: PlannedTrial,
    evaluations: list[Generation],
    shelf: DataShelf,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] | None = None,
    team: Team = started_here,
) -> Generator[Progress]:
    """Train a trial to its end, resuming it if needed, then make its missing evaluations.

    A failure of the trial is recorded in its status and yielded as `failed`, not raised. Closing the
    generator records `interrupted`. If another process holds the trial, yields `running` once.

    Args:
        home: where everything is written.
        trial: the trial.
        evaluations: made with the final weights; none for a diverged trial.
        shelf: loaded datasets.
        stop: called at every step; if true, a checkpoint is saved and the trial ends as `interrupted`.
        on_progress: called during sampling with a text on its progress.
        team: provides the other ranks of the trial; this process leads.

    Raises:
        PeerLost: a rank is gone; the trial is `interrupted`. A rank's own BadInput or NoResources is recorded as `failed`.
    """
    folder, steps = home.trial(trial.id), trial.fields.training.steps
    with folder.lock() as held:
        if not held:
            yield Progress("running", folder.status().step, steps)
            return
        try:
            stopped = False
            with contextlib.ExitStack() as gathered:
                gather = cache(lambda: gathered.enter_context(team(home, trial)))
                if folder.state() not in ENDED:
                    yield from _train(home, folder, trial, shelf, stop, gather)
                if folder.state() == "done" and (missing := missing_evaluations(folder, trial, evaluations)):
                    peers = gather() if any(draws(e, trial) for e in missing.values()) else ALONE
                    stopped = yield from make_evaluations(home, folder, trial, missing, shelf, on_progress, peers, stop)
            yield Progress("interrupted" if stopped else folder.state(), folder.status().step, steps)
        except GeneratorExit:
            if folder.state() not in (*ENDED, STOPPED):
                folder.write_status(state="interrupted")
            raise
        except PeerLost as error:  # not a fault of the trial, which resumes from its checkpoint
            if folder.state() not in ENDED:
                folder.write_status(state="interrupted", error=str(error), updated=time.time())
            raise
        except Exception as error:  # any error is recorded for this trial, and the sweep continues
            _record_failure(folder, error)
            yield Progress("failed", folder.status().step, steps)


def run_when_free(
    home: Home,
    trial: PlannedTrial,
    evaluations: list[Generation],
    shelf: DataShelf,
    stop: Callable[[], bool],
    team: Team = started_here,
) -> Generator[Progress]:
    """Run a trial. If another sweep holds it, wait until that sweep finishes it or dies."""
    while not stop():
        last = None
        with contextlib.closing(run_trial(home, trial, evaluations, shelf, stop, team=team)) as progress:
            for last in progress:
                yield last
        if last is None or last.state != "running":
            return
        time.sleep(_POLL_SECONDS)


def _record_failure(folder: TrialFolder, error: Exception) -> None:
    reason = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, LabError) and (place := plugin_place(error)) is not None:
        reason = f"{place}: {reason}"
    state = "failed"
    if is_disk_full(error):  # not a fault of the trial: the same command resumes it
        state = "interrupted"
        reason = f"{folder.root}: the disk is full ({error}); older checkpoints are intact; free space, then run the same command again"
    with contextlib.suppress(OSError):  # on a full disk the status may still fit
        write_atomic(folder.root / "error.txt", traceback.format_exc(), mode=PRIVATE)
    cause = "input" if isinstance(error, BadInput) else None  # the next sweep retries what a user can fix
    try:
        folder.write_status(state=state, error=reason, cause=cause)
    except OSError as fault:
        raise NoResources(f"{reason} (its state cannot be written either: {fault})") from error


def _train(
    home: Home,
    folder: TrialFolder,
    trial: PlannedTrial,
    shelf: DataShelf,
    stop: Callable[[], bool],
    gather: Callable[[], Peers],
) -> Generator[Progress]:
    steps = trial.fields.training.steps
    torch.set_num_threads(trial.fields.resources.threads)
    attempt = folder.status().attempt + 1
    now = time.time()
    saved = list_checkpoints(folder.checkpoints)
    reached = int(saved[0].name.removeprefix("step-")) if saved else 0
    folder.write_status(
        state="running",
        step=reached,
        steps=steps,
        attempt=attempt,
        error=None,
        # Step and code go into one file, so that a kill cannot separate them.
        trained_by=trained_by(folder, reached),
        code=code_of(folder),
        pid=os.getpid(),
        devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        started=folder.status().started or now,
        updated=now,
    )
    yield Progress("running", reached, steps)

    def on_hang(why: str) -> None:
        folder.write_status(state="failed", error=why, updated=time.time())

    patience = trial.fields.resources.patience
    with Watchdog(folder.root / "hang.txt", patience, on_hang) as watchdog:
        peers = gather()
        # Reading data may take longer than any step, and so may waiting for another process that reads it.
        with listening(lambda *_: watchdog.beat()), while_waiting(watchdog.beat):
            data = shelf.for_training(trial, home)
        device = pick_device(trial.fields.resources.gpus)
        devices = device_name(device) if peers.alone else f"{peers.size} x {device_name(device)}"
        if trial.fields.training.compile:  # compiled code is shared by processes and later sweeps
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home.cache.resolve() / "compiled"))
        folder.write_status(trained_on=trained_on(folder, reached, devices))
        _describe(home, folder, trial, data, device)
        _begin(home, folder, trial, data, device)
        trainer = trainer_among(peers, trial, data, device, folder.checkpoints)
        # Resume from a checkpoint with complete records: a power cut may have removed the last records.
        sound = sound_lines(folder.spool, folder.images)
        resumed = trainer.resume(lambda state: state.get("lines", 0) <= sound)
        # The newest checkpoint may be damaged.
        at = trainer.step if resumed else 0
        if not resumed:
            (folder.root / "imported.json").unlink(missing_ok=True)  # nothing of it is imported any more
        changed: dict[str, Any] = {
            "trained_by": trained_by(folder, at),
            "trained_on": trained_on(folder, at, devices),
        }
        if damaged := sorted(path.name for path in folder.checkpoints.glob("damaged-*")):
            changed["damaged"] = damaged  # skipped, and kept for inspection
        folder.write_status(step=at, **changed)
        meter = Meter(trial.fields, cached_shape(trial.fields, home, training_code()), device)
        forget_peak(device)
        spool = Spool(
            folder.spool,
            folder.images,
            at if resumed else None,
            trainer.resumed_told,
            trainer.resumed_lines,
            meter,
        )
        busy = folder.status().seconds if resumed else 0.0

        with contextlib.closing(spool):
            yield from _follow(folder, trainer, spool, busy, watchdog, stop)


def _begin(home: Home, folder: TrialFolder, trial: PlannedTrial, data: DataSet, device: torch.device) -> None:
    """Start from a checkpoint of another trial with the same first steps, if this trial has none of its own."""
    found = None if list_checkpoints(folder.checkpoints) else find_beginning(home, trial)
    if found is not None and begin_from(found, folder, data.fingerprint, device.type):
        folder.write_status(**taken_over(found))
    record_beginning(home, beginning_key(trial.fields, trial.seed), trial.id)


def _follow(
    folder: TrialFolder, trainer: Trainer, spool: Spool, busy: float, watchdog: Watchdog, stop: Callable[[], bool]
) -> Generator[Progress]:
    """Write the trainer's events to the spool and update the status."""

    def should_stop() -> bool:
        watchdog.beat()
        return stop()

    steps, began, written = trainer.trial.training.steps, time.perf_counter(), 0.0
    state, reason = "running", None
    for event in trainer.run(should_stop, spool.flush):
        watchdog.beat()
        spool.append(event)
        if isinstance(event, Diverged):
            state, reason = "diverged", event.reason
            trainer.save_crash(folder.root / "crash", event.reason)
        elif isinstance(event, Finished):
            state = "done"
        now, seconds = time.time(), busy + time.perf_counter() - began
        if state != "running":
            spool.flush()  # before the status: an ended trial has all of its records
            folder.write_status(
                state=state, step=event.step, seconds=seconds, updated=now, error=reason, spool_bytes=spool.bytes
            )
        elif isinstance(event, Logged) and now - written >= STATUS_EVERY:
            written = now
            folder.write_progress(step=event.step, seconds=seconds, updated=now)
        yield Progress(state, event.step, steps)
    if state == "running":
        seconds = busy + time.perf_counter() - began
        folder.write_status(state="interrupted", step=trainer.step, seconds=seconds, updated=time.time())


def _describe(home: Home, folder: TrialFolder, trial: PlannedTrial, data: DataSet, device: torch.device) -> None:
    name = device_name(device) if device.type == "cuda" else "cpu"
    keep_plugins(home)
    (folder.root / "code.diff").unlink(missing_ok=True)  # of a previous attempt
    if difference := work_tree_diff():
        write_atomic(folder.root / "code.diff", difference)
    plugins, shown = loaded_digests(), shown_metrics()
    origin = provenance() | {"device": name} | ({"plugins": plugins} if plugins else {})
    record = TrialRecord.model_validate(
        {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "id": trial.id,
            "variant": trial.variant,
            "point": trial.point,
            "seed": trial.seed,
            "size": trial.fields.network.size,
            "name": trial.name,
            "overrides": trial.overrides,
            "fields": trial.fields.model_dump(),
            "canonical": canonical_fields(trial.fields),
            "flops_per_image": cached_shape(trial.fields, home, training_code()).flops_per_image,
            "data": DataRecord(name=data_name(trial.fields), fingerprint=data.fingerprint, **data.facts),
            "provenance": Provenance.model_validate(origin),
            **({"shown": shown} if shown else {}),
            **({"own_parts": own} if (own := own_parts(canonical_fields(trial.fields))) else {}),
        }
    )
    record.write(folder.root / "trial.json", durable=True)
