"""Make the missing evaluations of a finished trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch

from dsd_lab.core.observing.pictures import encoded
from dsd_lab.core.peers import Peers
from dsd_lab.core.training.trainer import pick_device
from dsd_lab.evaluation.drawing import StoppedDrawing
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.evaluation.metric_names import sampling_name
from dsd_lab.evaluation.reference import check_files
from dsd_lab.evaluation.workspace import EvaluationCache
from dsd_lab.files.atomic import make_folder, write_atomic
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import Evaluation
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.evaluate_list import of_trial
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation
from dsd_lab.units import duration

STATUS_EVERY = 1.0
"""Seconds between updates of the status file."""


@dataclass(frozen=True)
class Progress:
    """Progress of a trial."""

    state: str
    step: int
    steps: int


def missing_evaluations(
    folder: TrialFolder, trial: PlannedTrial, evaluations: list[Generation]
) -> dict[str, Generation]:
    """The evaluations of a finished trial that are not made, by id, each of one checkpoint."""
    done, wanted = folder.evaluations(), of_trial(evaluations, trial.fields, folder.saved_steps())
    return {key: e for e in wanted if (key := evaluation_id(e)) not in done}


def draws(evaluation: Generation, trial: PlannedTrial) -> bool:
    """Whether an evaluation samples a trial, which all of its processes do together."""
    return trial.fields.has_denoiser and bool(evaluation.of_images)


def make_evaluations(
    home: Home,
    folder: TrialFolder,
    trial: PlannedTrial,
    wanted: Mapping[str, Generation],
    shelf: DataShelf,
    on_progress: Callable[[str], None] | None,
    peers: Peers,
    stop: Callable[[], bool],
) -> Generator[Progress, None, bool]:
    """Make evaluations of a finished trial; yields its progress after each, and returns whether it was stopped.

    Args:
        home: of the trial.
        folder: of the trial.
        trial: that has finished.
        wanted: by id.
        shelf: data sets already in memory.
        on_progress: called with a text on the progress.
        peers: this process, which leads, among those that draw the samples.
        stop: asked between blocks of samples.
    """
    check_files(list(wanted.values()), home)
    torch.set_num_threads(trial.fields.resources.threads)
    data, device = shelf.of_trial(folder, trial.fields, home), pick_device(trial.fields.resources.gpus)
    progress = _EvaluationProgress(folder, len(wanted), on_progress)
    bench = EvaluationCache(trial.fields, folder.checkpoints, data, device, home, progress, peers, stop)
    try:
        # Evaluations of the same samples are adjacent, since only the last samples are cached.
        for key, e in sorted(wanted.items(), key=lambda item: _of_samples(item[1])):
            started = time.perf_counter()
            metrics, samples = evaluate_generation(e, trial.fields, folder.checkpoints, data, device, home.cache, bench)
            make_folder(folder.root / "evaluations")
            made = Evaluation(settings=e.model_dump(), metrics=metrics, seconds=time.perf_counter() - started)
            write_atomic(folder.images / f"evaluation-{key}.png", encoded(samples), durable=True)
            made.write(folder.root / "evaluations" / f"{key}.json", durable=True)
            progress.next_evaluation()
            yield Progress("done", trial.fields.training.steps, trial.fields.training.steps)
        bench.forget_samples()
    except StoppedDrawing:
        return True
    finally:
        folder.say_evaluating(None)
    return False


def _of_samples(e: Generation) -> tuple[str, ...]:
    return (str(e.checkpoint), e.weights, str(e.images), sampling_name(e))


class _EvaluationProgress:
    """Records the progress of evaluations and the time left in the trial's folder, at most once per second."""

    def __init__(self, folder: TrialFolder, of: int, on_progress: Callable[[str], None] | None) -> None:
        self._folder, self._of, self._on_progress = folder, of, on_progress
        self._done, self._written = 0, 0.0
        self._began, self._first, self._last = 0.0, 0, 0

    def __call__(self, drawn: int, requested: int) -> None:
        now = time.monotonic()
        if drawn < self._last or not self._began:  # other samples
            self._began, self._first = now, drawn
        self._last = drawn
        left = ""
        if self._first < drawn < requested:
            left = f", {duration((now - self._began) * (requested - drawn) / (drawn - self._first))} left"
        text = f"{drawn:,}/{requested:,} images{left}"
        if self._on_progress is not None:
            self._on_progress(text)
        if now - self._written >= STATUS_EVERY:
            self._written = now
            self._folder.say_evaluating(f"evaluation {self._done + 1}/{self._of}, {text}")

    def next_evaluation(self) -> None:
        self._done, self._began = self._done + 1, 0.0
