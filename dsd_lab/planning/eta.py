"""Estimate the remaining time of a sweep from the records of its trials.

Trials differ in cost, start one after the other and are evaluated at their end, so the mean rate of steps
misleads. Here a trial that has not begun costs per step what trials of its shape cost. If none has been timed,
its work (FLOPs) costs what work cost trials of its width, or all trials. Evaluations are estimated from
earlier evaluations, at first from training. Trials are then scheduled as Tune does it: the next trial takes the
first free place.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from dsd_lab.planning.estimates import Shape, shape_key
from dsd_lab.specs.evaluate_list import of_trial
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.registry import parts_of
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation, Trial

_MIN_TIMED = 0.05
"""Share of a trial's steps from which its shape counts as timed."""
_ASSUMED_HOLDOUT = 1000
"""Assumed images of an evaluation on all held-out images, while their number is unknown."""
_STEP_OVERHEAD, _EVALUATION_OVERHEAD = 3e8, 5e9
"""Fixed cost of a step and of an evaluation in FLOPs, since small networks take longer than their matrix products
suggest. Fitted to two recorded sweeps on a CPU."""


@dataclass(frozen=True)
class TrialProgress:
    """Current progress of a trial, from its folder."""

    trial: PlannedTrial
    state: str
    step: int
    """Current step."""
    seconds: float
    """Time of its own steps."""
    evaluated: Sequence[float] = ()
    """Seconds of its finished evaluations."""
    is_active: bool = False
    """A process trains or evaluates it."""
    taken_over: int = 0
    """Steps taken over from another trial's checkpoint."""

    @property
    def own_steps(self) -> int:
        """Steps that the trial trained itself."""
        return self.step - self.taken_over


def step_work(trial: Trial, shape: Shape) -> float:
    """Work of a training step in FLOPs."""
    return _STEP_OVERHEAD + shape.flops_per_image * trial.training.batch_size


def evaluation_work(trial: Trial, shape: Shape, evaluation: Generation, holdout: int) -> float:
    """Work of an evaluation in FLOPs. An adaptive sampler counts with the default number of steps."""
    if not trial.has_denoiser:
        return _EVALUATION_OVERHEAD
    images = holdout if evaluation.images == "holdout" else evaluation.images
    traits = parts_of("sampler").part(evaluation.sampler).traits
    steps = Generation().steps if traits.get("adaptive") else evaluation.steps
    calls: float = steps * traits.get("calls", 1) * (1 if evaluation.guidance == 1 else 2)
    return _EVALUATION_OVERHEAD + calls * images * shape.role_flops["denoise"]


class Remaining:
    """Remaining time of a sweep.

    Args:
        trials: all trials of the sweep.
        evaluations: made for every finished trial.
        shape_of: counts of a trial, as from `dsd_lab.planning.estimates.cached_shape`.
    """

    def __init__(
        self, trials: list[PlannedTrial], evaluations: Sequence[Generation], shape_of: Callable[[Trial], Shape]
    ) -> None:
        self._evaluations = {t.id: of_trial(evaluations, t.fields) for t in trials}
        shape = once_for_seeds(lambda fields: shape_key(canonical_fields(fields)))
        self._shapes = {t.id: shape(t.fields) for t in trials}
        counted = once_for_seeds(shape_of)
        self._counts = {t.id: counted(t.fields) for t in trials}
        self._work = {t.id: step_work(t.fields, self._counts[t.id]) for t in trials}
        self._places = 1

    def seconds(self, seen: list[TrialProgress], holdout: int | None = None) -> float | None:
        """Seconds to the end of the sweep; None while nothing was timed.

        Args:
            seen: all trials in start order.
            holdout: number of held-out images, if known.
        """
        self._places = max(self._places, sum(s.is_active for s in seen))
        each = self.each(seen, holdout)
        if not each:
            return None if each is None else 0.0
        working = {s.trial.id for s in seen if s.is_active}
        ends = [left for trial, left in each.items() if trial in working]
        ends += [0.0] * (self._places - len(ends))
        heapq.heapify(ends)
        for trial, left in each.items():
            if trial not in working:
                heapq.heappush(ends, heapq.heappop(ends) + left)
        return max(ends)

    def each(self, seen: list[TrialProgress], holdout: int | None = None) -> dict[str, float] | None:
        """Seconds of remaining work per unfinished trial by id; None while nothing was timed.

        Args:
            seen: as for `seconds`.
            holdout: as for `seconds`.
        """
        timed: dict[str, tuple[float, int]] = {}
        for s in seen:
            before = timed.get(self._shapes[s.trial.id], (0.0, 0))
            timed[self._shapes[s.trial.id]] = before[0] + s.seconds, before[1] + s.own_steps
        work = sum(s.own_steps * self._work[s.trial.id] for s in seen)
        rest = [s for s in seen if self._is_unfinished(s)]
        if not rest:
            return {}
        if not work:
            return None
        of_width: dict[int | None, tuple[float, float]] = {}
        for s in seen:
            width = s.trial.fields.network.width
            took, made = of_width.get(width, (0.0, 0.0))
            of_width[width] = took + s.seconds, made + s.own_steps * self._work[s.trial.id]
        whole = sum(s.seconds for s in seen) / work

        def seconds_per_unit(trial: Trial) -> float:
            took, made = of_width[trial.network.width]
            return took / made if made else whole

        def sampling(s: TrialProgress) -> list[float]:
            images, counts = holdout or _ASSUMED_HOLDOUT, self._counts[s.trial.id]
            return [evaluation_work(s.trial.fields, counts, e, images) for e in self._evaluations[s.trial.id]]

        evaluated = [a / b for s in seen for a, b in zip(s.evaluated, sampling(s), strict=False)]

        def left(s: TrialProgress) -> float:
            fields, (spent, made) = s.trial.fields, timed[self._shapes[s.trial.id]]
            steps = 0 if s.state == "done" else fields.training.steps - s.step
            enough = made >= _MIN_TIMED * fields.training.steps
            a_step = spent / made if enough else self._work[s.trial.id] * seconds_per_unit(fields)
            missing = sum(sampling(s)[len(s.evaluated) :])
            return steps * a_step + missing * (median(evaluated) if evaluated else seconds_per_unit(fields))

        return {s.trial.id: left(s) for s in rest}

    def _is_unfinished(self, s: TrialProgress) -> bool:
        if s.state in ("failed", "diverged", "stopped"):
            return False
        return s.state != "done" or len(s.evaluated) < len(self._evaluations[s.trial.id])
