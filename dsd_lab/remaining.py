"""How long a sweep will still take, from what its trials have recorded so far.

Trials differ in cost, start one after the other and are evaluated at their end, so the remaining steps
over the steps a second so far mislead. Here every trial that has not begun costs what trials of its
shape cost a step; where none has been timed, what others of its width cost a block's forward pass, or
all others: small networks take longer than their products say. Evaluations
cost what they cost before, at first their forward passes. The rest is Tune's own rule: the next trial
in order takes the first place that is free.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dsd_lab.estimates import shape_key
from dsd_lab.specs.evaluations import applies
from dsd_lab.specs.fields import Generation, Trial, uses_target_encoder
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.seeds import once_for_seeds
from dsd_lab.specs.sweep import PlannedTrial

_ENOUGH = 0.05
"""Share of a trial's steps from which its shape counts as timed."""
_HOLDOUT = 1000
"""Images of an evaluation on as many as are held out, where no trial has told how many that is."""


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


def step_passes(trial: Trial) -> float:
    """Forward passes of a block in a training step: a backward pass counts as two, a wider block as its products."""
    encode, denoise, decode = _blocks(trial)
    stages, steps = trial.stages(), trial.training.steps
    ends = [*(stage.start for stage in stages[1:]), steps]
    passes = 0.0
    for stage, end in zip(stages, ends, strict=True):
        objective = stage.trial.objective
        trained = 3.0 * denoise * trial.training.flow_steps if objective.diffusion_weight > 0 else 0.0
        trained += encode if uses_target_encoder(objective) else 0
        trained += encode if "encode" in stage.frozen else 3.0 * encode
        trained += 3.0 * decode if objective.reconstruction_weight > 0 else 0.0
        passes += trained * (end - stage.start) / steps
    return passes * trial.training.batch_size * _block(trial)


def evaluation_passes(trial: Trial, evaluation: Generation, holdout: int) -> float:
    """The same of sampling an evaluation's images."""
    images = holdout if evaluation.images == "holdout" else evaluation.images
    solver = 2 if evaluation.sampler == "heun" else 1
    guided = 1 if evaluation.guidance == 1 else 2
    return images * evaluation.steps * solver * guided * _blocks(trial)[1] * _block(trial)


def _blocks(trial: Trial) -> tuple[int, int, int]:
    network = trial.network
    if network.layout == "coupled":
        return (int(network.shared_blocks or 1),) * 3
    return int(network.encode_blocks or 1), int(network.denoise_blocks or 1), int(network.decode_blocks or 1)


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
        self._passes = {t.id: step_passes(t.fields) for t in trials}
        self._places = 1

    def seconds(self, seen: list[Seen], holdout: int | None = None) -> float | None:
        """Seconds to the end of the sweep; None while nothing has been timed.

        Args:
            seen: all trials, in the order in which they start.
            holdout: held-out images, where a trial has told how many.
        """
        working = [s for s in seen if s.at_work]
        self._places = max(self._places, len(working))
        timed: dict[str, tuple[float, int]] = {}
        for s in seen:
            before = timed.get(self._shapes[s.trial.id], (0.0, 0))
            timed[self._shapes[s.trial.id]] = before[0] + s.seconds, before[1] + s.step
        passes = sum(s.step * self._passes[s.trial.id] for s in seen)
        rest = [s for s in seen if self._is_unfinished(s)]
        if not rest:
            return 0.0
        if not passes:
            return None
        of_width: dict[float, tuple[float, float]] = {}
        for s in seen:
            block = _block(s.trial.fields)
            took, made = of_width.get(block, (0.0, 0.0))
            of_width[block] = took + s.seconds, made + s.step * self._passes[s.trial.id]
        whole = sum(s.seconds for s in seen) / passes

        def a_pass(trial: Trial) -> float:
            took, made = of_width[_block(trial)]
            return took / made if made else whole

        known = [seconds for s in seen for seconds in s.evaluated]

        def left(s: Seen) -> float:
            steps = 0 if s.state == "done" else s.trial.fields.training.steps - s.step
            spent, made = timed[self._shapes[s.trial.id]]
            enough = made >= _ENOUGH * s.trial.fields.training.steps
            fields, lacking = s.trial.fields, self._evaluations[s.trial.id][len(s.evaluated) :]
            a_step = spent / made if enough else self._passes[s.trial.id] * a_pass(fields)
            costs = [evaluation_passes(fields, e, holdout or _HOLDOUT) * a_pass(fields) for e in lacking]
            return steps * a_step + sum(median(known) if known else c for c in costs)

        ends = [left(s) for s in rest if s.at_work]
        ends += [0.0] * (self._places - len(ends))
        heapq.heapify(ends)
        for s in rest:
            if not s.at_work:
                heapq.heappush(ends, heapq.heappop(ends) + left(s))
        return max(ends)

    def _is_unfinished(self, s: Seen) -> bool:
        if s.state in ("failed", "diverged", "stopped"):
            return False
        return s.state != "done" or len(s.evaluated) < len(self._evaluations[s.trial.id])


def holdout_of(description: dict[str, Any] | None) -> int | None:
    """Held-out images that a started trial has told of."""
    return None if description is None else int(description["data"]["holdout"])
