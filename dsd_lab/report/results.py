"""The results of a sweep for the report: one `Result` per trial, with its history."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_lab.files.bounded import read_json
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.history import History
from dsd_lab.home.sweep_records import Entry, Manifest
from dsd_lab.home.trial_folder import OTHER_IMAGES
from dsd_lab.home.trial_records import Evaluation, TrialRecord
from dsd_lab.specs.evaluation import Generation
from dsd_lab.specs.part_fields import unknown_parts_pass
from dsd_lab.specs.report import XAxis
from dsd_lab.specs.trial import Trial
from dsd_lab.store.mlflow_store import Store
from dsd_lab.training_code import is_current

FINISHED = ("done", "stale")
"""States of a trial that completed training: it has a verdict, and its values are part of means."""
Evaluated = tuple[Generation, dict[str, float]]
"""Settings of an evaluation, and its metrics by name, including those of real images."""


@dataclass(frozen=True)
class Result:
    """One trial of a sweep."""

    id: str
    variant: str
    point: dict[str, Any]
    seed: int
    size: str
    state: str
    steps: int
    """Steps in the spec."""
    step: int
    """Steps done."""
    seconds: float
    """Time for which the trial held its resources: training, probes, images, checkpoints."""
    error: str | None
    metrics: dict[str, float]
    """Last value of every metric, evaluations included."""
    history: History = field(default_factory=History.empty)
    evaluations: list[Evaluated] = field(default_factory=list)
    description: TrialRecord | None = None
    """trial.json: fields, data, provenance; None if the trial never started."""
    folder: Path | None = None
    """Artifacts of the trial."""
    code_changes: str | None = None
    """Training code by first step; None if it did not change."""
    device_changes: str | None = None
    """Device by first step; None if it did not change."""
    imported: str | None = None
    """The sweep with which it was imported; None if it was trained here."""
    sweep: str = ""
    """Key of the sweep: trials of several sweeps can have the same variant, point and seed."""
    unreadable: list[str] = field(default_factory=list)
    """Unreadable files of the trial, with reasons; pictures are added when they are drawn."""

    @cached_property
    def group(self) -> str:
        """Variant and grid point: the name of its row in a table."""
        return ", ".join([self.variant, *filter(None, [point_name(self.point)])])

    @property
    def record(self) -> TrialRecord:
        """The description of a trial; the trial must have one."""
        assert self.description is not None, f"trial {self.id} never started"
        return self.description

    @property
    def trial(self) -> Trial:
        """The fields of a trial; the trial must have a description."""
        return self.record.trial

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    def images_of(self, evaluation: Generation) -> int:
        """Number of images that an evaluation asked for."""
        return int(self.record.data.holdout if evaluation.images == "holdout" else evaluation.images)

    def along(self, steps: NDArray[Any], x: XAxis) -> NDArray[Any]:
        """Optimiser steps [S] of the trial converted to steps, images or FLOPs [S].

        Values are interpolated between logged steps. Records of earlier versions lack them: there they follow from the
        trial's fields, and are NaN for FLOPs that were not counted.
        """
        if x == "step" or not len(steps):
            return steps
        at, seen = self.history.series(f"seen/{x}")
        if not len(at):
            each = self.trial.training.batch_size * (1.0 if x == "images" else self.record.flops_per_image or math.nan)
            return np.asarray(steps * each)
        return np.asarray(np.interp(steps, np.concatenate([[0], at]), np.concatenate([[0.0], seen])))

    def last_probes(self, name: str, count: int) -> float | None:
        """Median of the last `count` probes of a latent metric; None without probes, or if it is not finite."""
        _, values = self.history.series(name)
        last = values[-count:].tolist()
        middle = math.nan if not last or any(map(math.isnan, last)) else median(last)
        return middle if math.isfinite(middle) else None


def point_name(point: dict[str, Any]) -> str:
    """`key=value, ...` of a grid point, keys without their section; empty without a grid."""
    return ", ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items())


def result_of(entry: Entry, state: str, tags: dict[str, str], metrics: dict[str, float], folder: Path | None) -> Result:
    """A result from a row of the manifest and the trial's tags, metrics and artifacts in the store."""
    history, description, evaluations, unreadable = History.empty(), None, list[Evaluated](), list[str]()
    if folder is not None and (folder / "history.parquet").exists():
        history = History.read(folder / "history.parquet")
        description = TrialRecord.read(folder / "trial.json")
        evaluations, unreadable = _evaluations(folder / "evaluations")
    return Result(
        id=entry.id,
        variant=entry.variant,
        point=entry.point,
        seed=entry.seed,
        size=entry.size,
        state=state,
        steps=entry.steps,
        step=int(tags.get("dsd.step", 0)),
        seconds=float(tags.get("dsd.seconds", 0.0)),
        error=tags.get("dsd.error"),
        metrics=metrics,
        history=history,
        evaluations=evaluations,
        description=description,
        folder=folder,
        code_changes=tags.get("dsd.code_changes"),
        device_changes=tags.get("dsd.device_changes"),
        imported=tags.get("dsd.imported"),
        unreadable=unreadable,
    )


def _evaluations(folder: Path) -> tuple[list[Evaluated], list[str]]:
    """Settings and metrics of the evaluations in a folder, and unreadable files with reasons."""
    found, unreadable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            with unknown_parts_pass():
                record = Evaluation.model_validate(read_json(path))
                found.append((Generation.model_validate(record.settings), dict(record.metrics)))
        except (OSError, ValueError, RecursionError):
            unreadable.append(f"{path.name}: not an evaluation with its settings")
    return found, unreadable


def without_values(result: Result, state: str, why: str) -> Result:
    """The result without values, for a trial that must not be compared with the others."""
    return replace(
        result,
        state=state,
        error=why,
        metrics={},
        history=History.empty(),
        evaluations=[],
        description=None,
        folder=None,
    )


@contextmanager
def stored_results(store: Store, manifest: Manifest) -> Iterator[list[Result]]:
    """Sync the store and read a sweep's trials from it, as `results_of`; their artifacts last as long as the context."""
    store.sync(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        yield results_of(store, manifest, Path(scratch))


def results_of(store: Store, manifest: Manifest, scratch: Path) -> list[Result]:
    """The trials of a sweep, read from the store; those trained by other training code are `stale`.

    A trial with other images than the rest keeps only its state: its values are in no table.
    """
    results = []
    for stored in store.read(manifest, scratch):
        state = stored.tags.get("dsd.state", "pending")
        if state == "done" and not is_current(stored.tags.get("dsd.code")):
            state = "stale"
        found = result_of(stored.entry, state, stored.tags, stored.metrics, stored.folder)
        results.append(replace(found, sweep=manifest.key))
    store.say_notices()
    others = other_images({r.id: r.record for r in results if r.description})
    return [without_values(r, OTHER_IMAGES, others[r.id]) if r.id in others else r for r in results]
