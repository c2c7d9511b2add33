"""Records of running trials: speed, loss, state of the latents, and the report's verdict on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.spool import SpoolTail
from dsd_lab.report.statistics.latent_state import (
    MEASURES,
    PATCHES,
    LatentState,
    control_at,
    known_verdict,
    states_of,
)
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.sweep import PlannedTrial

_SPEED_RECORDS = 10
"""Training records over which speed is averaged."""


@dataclass(frozen=True)
class TrialSnapshot:
    """A running trial's records; None where not recorded yet."""

    images_per_second: float | None = None
    """During training, without probes, images and checkpoints."""
    loss: float | None = None
    state: LatentState | None = None
    """Of the latents: medians over the last probes, as in the report."""
    verdict: str | None = None
    """By the report's rule."""
    control: str | None = None
    """Name of the trial that it was compared with; None: fixed bounds."""


class _Records:
    """Reads the records of a trial incrementally."""

    def __init__(self, home: Home, trial: PlannedTrial, probes: int) -> None:
        self._trial, self._tail, self._probes = trial, SpoolTail(home.trial(trial.id).spool), probes
        self.loss: float | None = None
        self._timed: list[tuple[int, float]] = []
        """Steps and seconds of the last training records."""
        self._rows: list[tuple[int, list[float]]] = []
        """Step and `MEASURES` of every probe that has all of them."""
        self._patches: tuple[float, float] | None = None
        self._states: list[LatentState] = []
        self._at = 0
        """Step of the last training record."""

    def read(self) -> None:
        """Read what was recorded since the last call."""
        try:
            entries = self._tail.read()
        except BadInput:  # a damaged spool is reported elsewhere
            return
        before = len(self._rows)
        for entry in entries:
            step, metrics = entry.step, entry.metrics
            if entry.kind == "train":
                self.loss = metrics.get("train/loss")
                steps = step - self._at if step > self._at else step
                self._timed = [*self._timed, (steps, entry.seconds or 0.0)][-_SPEED_RECORDS:]
                self._at = step
            elif entry.kind == "probe" and all(name in metrics for name in MEASURES):
                if self._rows and step <= self._rows[-1][0]:  # the trial was resumed from an earlier step
                    self._rows = [row for row in self._rows if row[0] < step]
                    before = -1
                self._rows.append((step, [metrics[name] for name in MEASURES]))
                if all(name in metrics for name in PATCHES):
                    self._patches = (max(metrics[PATCHES[0]], 1.0), max(metrics[PATCHES[1]], 1.0))
        if len(self._rows) != before:
            table = [np.array(column) for column in zip(*(row for _, row in self._rows), strict=True)]
            network = self._trial.fields.network.model_dump()
            self._states = states_of(network, self._patches, table, self._probes) if table else []

    @property
    def images_per_second(self) -> float | None:
        steps, seconds = (sum(values) for values in zip(*self._timed, strict=True)) if self._timed else (0, 0.0)
        return steps * self._trial.fields.training.batch_size / seconds if seconds > 0 else None

    @property
    def steps(self) -> list[int]:
        """Steps of the probes."""
        return [step for step, _ in self._rows]

    @property
    def states(self) -> list[LatentState]:
        return self._states


class LiveTrials:
    """The running trials of a sweep, and their controls.

    Args:
        home: where they write.
        trials: all trials of the sweep.
        settings: of the report: the control variant and the thresholds of the verdict.
    """

    def __init__(self, home: Home, trials: list[PlannedTrial], settings: ReportSettings) -> None:
        self._home, self._settings = home, settings
        self._controls = {_cell(t): t for t in trials if t.variant == settings.control}
        self._records: dict[str, _Records] = {}

    def so_far(self, trial: PlannedTrial) -> TrialSnapshot:
        """Records of a trial, compared with its control up to the last common probe."""
        own = self._read(trial)
        if not own.states:
            return TrialSnapshot(own.images_per_second, own.loss)
        control = None if trial.variant == self._settings.control else self._controls.get(_cell(trial))
        against, step = None, own.steps[-1]
        if control is not None:
            theirs = self._read(control)
            against = control_at(step, theirs.steps, theirs.states)
        name = known_verdict(own.states[-1], against, self._settings)
        judged_by = control.name if control is not None and against is not None else None
        return TrialSnapshot(own.images_per_second, own.loss, own.states[-1], name, judged_by)

    def _read(self, trial: PlannedTrial) -> _Records:
        if trial.id not in self._records:
            self._records[trial.id] = _Records(self._home, trial, self._settings.probes)
        self._records[trial.id].read()
        return self._records[trial.id]


def _cell(trial: PlannedTrial) -> tuple[int, str, str]:
    """Seed, size and grid point, which a trial and its control share, as in the report."""
    return trial.seed, trial.fields.network.size, repr(sorted(trial.point.items()))
