"""How long a sweep will still take, from what its trials have recorded so far.

Trials differ in cost, start one after the other and are evaluated at their end, so the remaining steps
over the steps a second so far mislead. Here every trial that has not begun costs what trials of its
shape cost a step; where none has been timed, its work costs what work cost others of its width, or all
others. So do evaluations, by what evaluations cost before, at first by what training did. The rest is
Tune's own rule: the next trial in order takes the first place that is free.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dsd_lab.planning.estimates import shape_key
from dsd_lab.specs.evaluate_list import applies
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation, Trial, uses_target_encoder

_ENOUGH = 0.05
"""Share of a trial's steps from which its shape counts as timed."""
_HOLDOUT = 1000
"""Images of an evaluation on as many as are held out, where no trial has told how many that is."""
_SAMPLED = 256
"""Images that an evaluation draws at a time."""
_CALL = 2.5e6
"""What calling a block takes beside its products, in tokens times width squared: small networks take longer than
their products say. Measured on a CPU: naive training takes 15, 17 and 24 ms a step at widths 16, 32 and 64."""
_STEP = 5e6
"""What a step takes beside its passes, in the same unit: batch, optimiser, records, probes."""
_EVALUATION = 4.5e8
"""What an evaluation takes beside sampling, in the same unit: a quarter of a second there."""


@dataclass(frozen=True)
class Seen:
    """A trial as its folder shows it now."""

    trial: PlannedTrial
    state: str
    step: int
    """Steps made."""
    seconds: float
    """That they took."""
    evaluated: Sequence[float] = ()
    """Seconds of its finished evaluations."""
    at_work: bool = False
    """A process works on it: it trains or is evaluated."""


def step_work(trial: Trial) -> float:
    """Work of a training step, most of it passes through a block, of which a backward one counts as two."""
    encode, denoise, decode = _blocks(trial)
    stages, steps = trial.stages(), trial.training.steps
    ends = [*(stage.start for stage in stages[1:]), steps]
    passes = 0.0
    for stage, end in zip(stages, ends, strict=True):
        objective = stage.trial.objective
        trained = 3.0 * denoise * trial.training.noise_draws if objective.diffusion_weight > 0 else 0.0
        trained += encode if uses_target_encoder(objective) else 0
        trained += encode if "encode" in stage.frozen else 3.0 * encode
        trained += 3.0 * decode if objective.reconstruction_weight > 0 else 0.0
        passes += trained * (end - stage.start) / steps
    return _STEP + passes * _pass_work(trial, trial.training.batch_size, trial.training.grad_accum_steps)


def evaluation_work(trial: Trial, evaluation: Generation, holdout: int) -> float:
    """The same of an evaluation."""
    images = holdout if evaluation.images == "holdout" else evaluation.images
    solver = 2 if evaluation.sampler == "heun" else 1
    guided = 1 if evaluation.guidance == 1 else 2
    passes = evaluation.steps * solver * guided * _blocks(trial)[1] if trial.has_denoiser else 0
    return _EVALUATION + passes * _pass_work(trial, images, math.ceil(images / _SAMPLED))


def _blocks(trial: Trial) -> tuple[int, int, int]:
    network = trial.network
    if network.layout == "coupled":
        return (int(network.shared_blocks or 1),) * 3
    return int(network.encode_blocks or 1), int(network.denoise_blocks or 1), int(network.decode_blocks or 1)


def _pass_work(trial: Trial, images: int, calls: int) -> float:
    return calls * _CALL + images * _block(trial)


def _block(trial: Trial) -> float:
    network = trial.network
    tokens = (int(network.image_size or 1) // int(network.patch_size or 1)) ** 2
    return float(tokens * int(network.width or 1) ** 2)


class Remaining:
    """The estimate for one sweep.

    Args:
        trials: all of it.
        evaluations: of every finished trial.
    """

    def __init__(self, trials: list[PlannedTrial], evaluations: Sequence[Generation]) -> None:
        self._evaluations = {t.id: [e for e in evaluations if applies(e, t.fields)] for t in trials}
        shape = once_for_seeds(lambda fields: shape_key(canonical_fields(fields)))
        self._shapes = {t.id: shape(t.fields) for t in trials}
        self._work = {t.id: step_work(t.fields) for t in trials}
        self._places = 1

    def seconds(self, seen: list[Seen], holdout: int | None = None) -> float | None:
        """Seconds to the end of the sweep; None while nothing has been timed.

        Args:
            seen: all trials, in the order in which they start.
            holdout: held-out images, where a trial has told how many.
        """
        self._places = max(self._places, sum(s.at_work for s in seen))
        each = self.each(seen, holdout)
        if not each:
            return None if each is None else 0.0
        working = {s.trial.id for s in seen if s.at_work}
        ends = [left for trial, left in each.items() if trial in working]
        ends += [0.0] * (self._places - len(ends))
        heapq.heapify(ends)
        for trial, left in each.items():
            if trial not in working:
                heapq.heappush(ends, heapq.heappop(ends) + left)
        return max(ends)

    def each(self, seen: list[Seen], holdout: int | None = None) -> dict[str, float] | None:
        """Seconds of work that is left of each unfinished trial, by id; None while nothing has been timed.

        Args:
            seen: as for `seconds`.
            holdout: as for `seconds`.
        """
        timed: dict[str, tuple[float, int]] = {}
        for s in seen:
            before = timed.get(self._shapes[s.trial.id], (0.0, 0))
            timed[self._shapes[s.trial.id]] = before[0] + s.seconds, before[1] + s.step
        work = sum(s.step * self._work[s.trial.id] for s in seen)
        rest = [s for s in seen if self._is_unfinished(s)]
        if not rest:
            return {}
        if not work:
            return None
        of_width: dict[float, tuple[float, float]] = {}
        for s in seen:
            block = _block(s.trial.fields)
            took, made = of_width.get(block, (0.0, 0.0))
            of_width[block] = took + s.seconds, made + s.step * self._work[s.trial.id]
        whole = sum(s.seconds for s in seen) / work

        def a_unit(trial: Trial) -> float:
            took, made = of_width[_block(trial)]
            return took / made if made else whole

        def sampling(s: Seen) -> list[float]:
            return [evaluation_work(s.trial.fields, e, holdout or _HOLDOUT) for e in self._evaluations[s.trial.id]]

        evaluated = [a / b for s in seen for a, b in zip(s.evaluated, sampling(s), strict=False)]

        def left(s: Seen) -> float:
            fields, (spent, made) = s.trial.fields, timed[self._shapes[s.trial.id]]
            steps = 0 if s.state == "done" else fields.training.steps - s.step
            enough = made >= _ENOUGH * fields.training.steps
            a_step = spent / made if enough else self._work[s.trial.id] * a_unit(fields)
            lacking = sum(sampling(s)[len(s.evaluated) :])
            return steps * a_step + lacking * (median(evaluated) if evaluated else a_unit(fields))

        return {s.trial.id: left(s) for s in rest}

    def _is_unfinished(self, s: Seen) -> bool:
        if s.state in ("failed", "diverged", "stopped"):
            return False
        return s.state != "done" or len(s.evaluated) < len(self._evaluations[s.trial.id])


def holdout_of(description: dict[str, Any] | None) -> int | None:
    """Held-out images that a started trial has told of."""
    return None if description is None else int(description["data"]["holdout"])
