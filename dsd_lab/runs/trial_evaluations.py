"""Make the missing evaluations of a finished trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from dsd_lab.core.observing.pictures import encoded
from dsd_lab.core.training.trainer import pick_device
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.evaluation.metric_names import sampling_name
from dsd_lab.evaluation.reference import check_files
from dsd_lab.evaluation.workspace import Bench
from dsd_lab.files.atomic import make_folder, write_atomic
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import Evaluation
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.evaluate_list import applies
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation

STATUS_EVERY = 1.0
"""Seconds between updates of the status file."""


@dataclass(frozen=True)
class Progress:
    """Progress of a trial."""

    state: str
    step: int
    steps: int


def make_evaluations(
    home: Home,
    folder: TrialFolder,
    trial: PlannedTrial,
    evaluations: list[Generation],
    shelf: DataShelf,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[Progress]:
    """Make the missing evaluations of a finished trial; yields progress after each."""
    done = folder.evaluations()
    wanted = {evaluation_id(e): e for e in evaluations if evaluation_id(e) not in done and applies(e, trial.fields)}
    if not wanted:
        return
    check_files(list(wanted.values()), home)
    torch.set_num_threads(trial.fields.resources.threads)
    data, device = shelf.of_trial(folder, trial.fields, home), pick_device(trial.fields.resources.gpus)
    progress = _EvaluationProgress(folder, len(wanted), on_progress)
    bench = Bench(trial.fields, folder.checkpoints, data, device, home, progress)
    try:
        # Evaluations of the same samples are adjacent, since only the last samples are cached.
        for key, e in sorted(
            wanted.items(), key=lambda item: (item[1].weights, str(item[1].images), sampling_name(item[1]))
        ):
            started = time.perf_counter()
            metrics, samples = evaluate_generation(e, trial.fields, folder.checkpoints, data, device, home.cache, bench)
            make_folder(folder.root / "evaluations")
            made = Evaluation(settings=e.model_dump(), metrics=metrics, seconds=time.perf_counter() - started)
            write_atomic(folder.images / f"evaluation-{key}.png", encoded(samples), durable=True)
            made.write(folder.root / "evaluations" / f"{key}.json", durable=True)
            progress.next_evaluation()
            yield Progress("done", trial.fields.training.steps, trial.fields.training.steps)
    finally:
        folder.say_evaluating(None)


class _EvaluationProgress:
    """Records the progress of evaluations in the trial's folder, at most once per second."""

    def __init__(self, folder: TrialFolder, of: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._folder, self._of, self._on_progress = folder, of, on_progress
        self._done, self._written = 0, 0.0

    def __call__(self, drawn: int, requested: int) -> None:
        if self._on_progress is not None:
            self._on_progress(drawn, requested)
        if time.monotonic() - self._written >= STATUS_EVERY:
            self._written = time.monotonic()
            self._folder.say_evaluating(f"evaluation {self._done + 1}/{self._of}, {drawn:,}/{requested:,} images")

    def next_evaluation(self) -> None:
        self._done += 1
