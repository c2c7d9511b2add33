"""Callbacks that Tune runs between steps: signals, lost workers, early stopping."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from dsd_lab.errors import NoResources, is_disk_full
from dsd_lab.files.atomic import PRIVATE, make_folder, write_atomic
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import STOPPED, TrialFolder
from dsd_lab.runs.early_stopping import Forecast, early_history, features, seen_steps
from dsd_lab.runs.signals import DeferredSignals
from dsd_lab.specs.trial import Trial

RETRIES = 2
"""Retries of a trial whose worker died; each resumes from the checkpoint."""
REFUSED = "refused"
"""Entry of a worker's last result: why its machine did not take the trial."""
_LOOK_EVERY = 15.0
"""Seconds between looks at the machines of a cluster on which nothing runs."""


class SignalCheck(tune.Callback):
    """Raises deferred signals between Tune's steps; in Ray's compiled code an exception would become a fault.

    Args:
        signals: the deferred signals.
        dead: returns what happened to a Ray process for which Tune would wait forever, such as `raylet died`; else None.
    """

    def __init__(self, signals: DeferredSignals, dead: Callable[[], str | None]) -> None:
        self._signals, self._dead = signals, dead

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore, which is not used; signal handlers cannot be pickled

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._signals.deliver()
        if (dead := self._dead()) is not None:
            raise RayDied(dead)


class SayWhatIsWaitedFor(tune.Callback):
    """Says why no trial runs where a cluster has lost the machines that it needs, of which Tune says nothing.

    Args:
        refuse: raises where the cluster as it is now has no room for a trial of this id.
    """

    def __init__(self, refuse: Callable[[str], None]) -> None:
        self._refuse, self._looked, self._said = refuse, time.monotonic(), ""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        waiting = next((trial for trial in trials if trial.status == "PENDING"), None)
        if waiting is None or any(trial.status == "RUNNING" for trial in trials):
            self._said = ""
            return
        try:
            self._refuse(waiting.config["job"]["trial"]["id"])
        except NoResources as lacking:
            if str(lacking) != self._said:
                self._said = str(lacking)
                say(f"dsd-lab: waits for machines to join the cluster: {lacking}", error=True)


class RayDied(BaseException):
    """A necessary process of Ray died or cannot be reached. Not an `Exception`, which Tune would attribute to the callback."""


class TrialFailed(BaseException):
    """A trial failed. Not an `Exception`, which Tune would attribute to the callback."""


class RecordFailures(tune.Callback):
    """Records trials whose workers are finally lost, and ends the sweep at the first failure if requested.

    This is a callback because Tune's results are unordered and lack the configuration of a lost worker.
    """

    def __init__(self, home: Home, fail_fast: bool) -> None:
        self._home, self._fail_fast, self._began = home, fail_fast, time.time()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = self._home.trial(trial.config["job"]["trial"]["id"])
        if reason := (trial.last_result or {}).get(REFUSED):
            make_folder(folder.root)
            folder.write_status(state="failed", error=reason, cause="input")  # mended, the same command runs it
        if self._fail_fast and folder.state() == "failed":
            raise TrialFailed

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _record_lost_worker(self._home, trial.config["job"]["trial"]["id"], trial.error_file, self._began)
        if self._fail_fast:
            raise TrialFailed


class StopCollapsed(tune.Stopper):
    """Stops a trial with at least a given probability of collapse. Asked once per trial and look.

    Tune asks between two steps of a worker, when the worker writes nothing.
    """

    def __init__(self, home: Home, forecasts: list[Forecast], chance: float) -> None:
        self._home, self._forecasts, self._chance = home, forecasts, chance
        self._asked: dict[str, float] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        trial = result["config"]["job"]["trial"]
        fields, step = Trial.model_validate(trial["fields"]), int(result.get("step", 0))
        if result["done"] or step == 0 or fields.objective.diffusion_weight == 0:
            return False
        reached = [f for f in self._forecasts if seen_steps(fields.training.steps, f.look) <= step]
        if not reached or reached[-1].look <= self._asked.get(trial["id"], 0):
            return False
        forecast = reached[-1]
        self._asked[trial["id"]] = forecast.look
        until, folder = seen_steps(fields.training.steps, forecast.look), self._home.trial(trial["id"])
        seen = features(early_history(folder.spool, until), fields.training.steps, forecast.look)
        chance = None if seen is None else forecast.chance(seen)
        if chance is None or chance < self._chance or folder.state() != "running":
            return False
        reason = f"stopped at step {step}: its first {until} steps give a chance of collapse of {chance:.3f}"
        folder.write_status(state=STOPPED, step=step, error=reason)
        return True

    def stop_all(self) -> bool:
        return False


def _record_lost_worker(home: Home, trial_id: str, failures: str | None, began: float) -> None:
    """Record a trial whose worker died too often.

    Args:
        home: of the sweep.
        trial_id: of the trial.
        failures: Tune's file of failures on the driver's machine; Tune's own API does not have them yet.
        began: when the sweep began, in seconds since 1970: what the trial recorded before is of another worker.
    """
    folder = home.trial(trial_id)
    try:
        _write_lost_worker(folder, failures, began)
    except OSError as error:
        if not is_disk_full(error):
            raise  # otherwise it counts as `interrupted`, and the same sweep resumes it


def _write_lost_worker(folder: TrialFolder, failures: str | None, began: float) -> None:
    folder.root.mkdir(parents=True, exist_ok=True)
    failure = Path(failures).read_text().strip() if failures and Path(failures).exists() else ""
    failure = failure or "reason unknown"
    if os.strerror(errno.ENOSPC) in failure:
        folder.write_status(state="interrupted", error=f"{folder.root}: the disk is full")
        return
    write_atomic(folder.root / "error.txt", f"{failure}\n", mode=PRIVATE)
    status = folder.status()
    own = status.error if status.updated >= began else None
    reason = own or failure.splitlines()[-1][:300]
    folder.write_status(state="failed", error=f"the worker died {RETRIES + 1} times; last: {reason}")
