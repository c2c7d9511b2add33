"""What Tune calls between two steps: signals, lost workers, early stopping."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from dsd_lab.errors import is_disk_full
from dsd_lab.files.atomic import PRIVATE, write_atomic
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import STOPPED, TrialFolder
from dsd_lab.runs.early_stopping import Forecast, early_history, features, seen_steps
from dsd_lab.runs.signals import HeldSignals
from dsd_lab.specs.trial import Trial

RETRIES = 2
"""Times that a trial whose worker died is taken up again from its checkpoint."""


class SignalCheck(tune.Callback):
    """Lets signals through where Tune is between two steps: Ray's compiled code turns an exception into a fault.

    Args:
        signals: those that arrived.
        dead: names what of Ray has died, without which Tune would wait for ever.
    """

    def __init__(self, signals: HeldSignals, dead: Callable[[], str | None]) -> None:
        self._signals, self._dead = signals, dead

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks to disk, for a restore that is never asked for; handlers of signals cannot be

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._signals.look()
        if (dead := self._dead()) is not None:
            raise RayDied(dead)


class RayDied(BaseException):
    """A process of our own Ray has died. Not an `Exception`, which Tune would take for the callback's own fault."""


class TrialFailed(BaseException):
    """A trial failed. Not an `Exception`, which Tune would take for the callback's own fault."""


class RecordFailures(tune.Callback):
    """Records trials whose workers are lost for good, and ends a sweep at its first failure where that was asked for.

    Here because Tune's results have neither an order nor, where a worker told nothing, a configuration.
    """

    def __init__(self, home: Home, fail_fast: bool) -> None:
        self._home, self._fail_fast = home, fail_fast

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._fail_fast and self._home.trial(trial.config["job"]["trial"]["id"]).state() == "failed":
            raise TrialFailed

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _record_lost_worker(self._home, trial.config["job"]["trial"]["id"], trial.error_file)
        if self._fail_fast:
            raise TrialFailed


class StopCollapsed(tune.Stopper):
    """Stops a trial whose first 5 % of steps give at least a chance of collapse; asks once a trial.

    Tune asks between two of a worker's steps, when the worker writes nothing.
    """

    def __init__(self, home: Home, forecast: Forecast, chance: float) -> None:
        self._home, self._forecast, self._chance = home, forecast, chance
        self._asked: set[str] = set()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        trial = result["config"]["job"]["trial"]
        fields, step = Trial.model_validate(trial["fields"]), int(result.get("step", 0))
        until = seen_steps(fields.training.steps)
        if result["done"] or trial["id"] in self._asked or step < until or step == 0:
            return False
        if fields.objective.diffusion_weight == 0:
            return False
        self._asked.add(trial["id"])
        folder = self._home.trial(trial["id"])
        seen = features(early_history(folder.spool, until), fields)
        chance = None if seen is None else self._forecast.chance(seen)
        if chance is None or chance < self._chance or folder.state() != "running":
            return False
        reason = f"stopped at step {step}: its first {until} steps give a chance of collapse of {chance:.3f}"
        folder.write_status(state=STOPPED, step=step, error=reason)
        return True

    def stop_all(self) -> bool:
        return False


def _record_lost_worker(home: Home, trial_id: str, failures: str | None) -> None:
    """`failures`: Tune's file of them, here on the driver's machine; what Tune offers itself is not there yet."""
    folder = home.trial(trial_id)
    try:
        _write_lost_worker(folder, failures)
    except OSError as error:
        if not is_disk_full(error):
            raise  # else it is `interrupted`, as nobody holds it: the same sweep goes on with it


def _write_lost_worker(folder: TrialFolder, failures: str | None) -> None:
    folder.root.mkdir(parents=True, exist_ok=True)
    told = Path(failures).read_text().strip() if failures and Path(failures).exists() else ""
    told = told or "nothing is known of why"
    if os.strerror(errno.ENOSPC) in told:
        folder.write_status(state="interrupted", error=f"{folder.root}: the disk is full")
        return
    write_atomic(folder.root / "error.txt", f"{told}\n", mode=PRIVATE)
    reason = told.splitlines()[-1][:300]
    if (folder.root / "hang.txt").exists():
        reason = f"it hung, its stacks are in {folder.root / 'hang.txt'}"
    folder.write_status(state="failed", error=f"the worker died {RETRIES + 1} times; last: {reason}")
