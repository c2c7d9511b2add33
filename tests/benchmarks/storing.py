"""What a trial costs the store: its files replayed into a fresh MLflow store, in SQLite on the disk where trials lie.

In a sweep another process does this beside the training, so it is no part of a trial's own time; on a
machine without a free CPU it is taken from it.
"""

from __future__ import annotations

import time
from pathlib import Path

from dsd_lab.bench.subjects import Subject
from dsd_lab.core.data import DataSet
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.planning.measured import event_counts
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.specs.sweep import Plan, PlannedTrial
from dsd_lab.specs.trial import Trial
from dsd_lab.store.mlflow_store import Store

_RECORDS = 50
"""Most records of the trial that is stored; one with more is taken to cost as many times more."""


def store_seconds(subject: Subject, data: DataSet, scratch: Path) -> dict[str, float]:
    """Seconds to open a new store (`open_seconds`) and to store all of one trial (`trial_seconds`).

    Args:
        subject: what is trained, for a few steps, and stored.
        data: its images.
        scratch: empty folder.
    """
    records = event_counts(subject.trial.fields)["record"]
    fields = _short(subject.trial.fields, min(records, _RECORDS))
    first, second = (PlannedTrial(f"{seed:012d}", subject.trial.variant, seed, fields) for seed in range(2))
    home, shelf = Home(scratch), DataShelf({fields.data.model_dump_json(): data})
    home.prepare()
    for trial in (first, second):
        for _ in run_trial(home, trial, [], shelf):
            pass
    began = time.perf_counter()
    store = Store(home, f"sqlite:///{scratch.resolve() / 'mlflow.db'}")
    opened = time.perf_counter() - began
    store.sync(_manifest(subject, [first]))  # the sweep's own run and experiment are made once
    began = time.perf_counter()
    store.sync(_manifest(subject, [first, second]))
    took = time.perf_counter() - began
    return {"open_seconds": opened, "trial_seconds": took * max(1.0, records / _RECORDS)}


def _short(trial: Trial, records: int) -> Trial:
    """The trial with one record a step, cut to so many steps and to its first stage."""
    training = trial.training.model_copy(update={"steps": records, "phases": []})
    every = max(1, records * trial.probe.every // trial.training.steps)
    watch = {"log_every": 1, "images_every": records, "checkpoint_every": records}
    changes = {
        "training": training,
        "probe": trial.probe.model_copy(update={"every": every}),
        "observation": trial.observation.model_copy(update=watch),
        "optimiser": trial.optimiser.model_copy(update={"warmup_steps": 0}),
    }
    return trial.model_copy(update=changes)


def _manifest(subject: Subject, trials: list[PlannedTrial]) -> Manifest:
    return manifest_of(Plan(subject.plan.spec, subject.plan.path, subject.plan.profile, trials))
