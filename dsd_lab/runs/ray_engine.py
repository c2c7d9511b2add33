"""The engine: runs unfinished trials with Ray Tune. `ray_cluster.py` starts or joins Ray.

The home folder decides what is finished before Ray starts. Workers are reused, so that a process
imports torch and loads its data once. Tune's own logs, results and checkpoints are off, or in a
folder that is deleted with Ray.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ray reads these at import: no usage reports, no Ctrl-C handling, no loggers, few snapshots of its state.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "300"
os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"

import ray
from ray import tune

from dsd_lab.errors import NO_RESOURCES, NoResources, comes_from_full_disk
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.ownership import unseen
from dsd_lab.home.plugins import keep_plugins
from dsd_lab.provenance import called_with, remember_call
from dsd_lab.runs.early_stopping import Forecast, seen_steps
from dsd_lab.runs.ray_callbacks import (
    REFUSED,
    RETRIES,
    RayDied,
    RecordFailures,
    SayWhatIsWaitedFor,
    SignalCheck,
    StopCollapsed,
    TrialFailed,
)
from dsd_lab.runs.ray_cluster import connected
from dsd_lab.runs.ray_health import Watch
from dsd_lab.runs.signals import DeferredSignals, StopFile
from dsd_lab.specs.plugins import load_kept
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation, Resources

if TYPE_CHECKING:
    from dsd_lab.runs.trial_evaluations import Progress

_REPORT_EVERY = 5.0
"""Seconds between a worker's reports to Tune, which is slow with many."""


class TrialWorker(tune.Trainable):
    """A worker process that runs trials one after the other."""

    _progress: Generator[Progress]

    def setup(self, config: dict[str, Any]) -> None:
        """Called once per process."""
        from dsd_lab.runs import ray_peers  # imports torch, which the driver does not need
        from dsd_lab.runs import run_trial as running
        from dsd_lab.runs.data_shelf import DataShelf

        self._shelf, self._running, self._team = DataShelf(), running, ray_peers.in_placement_group
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called when a worker gets its next trial."""
        self.cleanup()
        self._running.free_memory()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        job = config["job"]
        self._refused = unseen(Home(Path(job["home"])), job["home_id"])
        if self._refused is not None:
            return
        load_kept(job["plugins"])
        trial = PlannedTrial.from_json(job["trial"])
        evaluations = [Generation.model_validate(e) for e in job["evaluate"]]
        home, stop = Home(Path(job["home"])), StopFile(Path(job["stop"]))
        remember_call(job["command"])
        self._progress = self._running.run_when_free(home, trial, evaluations, self._shelf, stop, self._team)
        self._decided_at: list[int] = job["decided_at"]

    def step(self) -> dict[str, Any]:
        """Train for a few seconds, to the step where a stopper decides, or to the trial's end.

        Raises:
            RuntimeError: CUDA failed in this process, so Tune must not reuse it.
        """
        if self._refused is not None:
            return {"done": True, REFUSED: self._refused}
        until = time.monotonic() + _REPORT_EVERY
        for progress in self._progress:
            passed = sum(at <= progress.step < progress.steps for at in self._decided_at)
            if passed or time.monotonic() > until:
                self._decided_at = self._decided_at[passed:]
                return {"state": progress.state, "step": progress.step, "done": False}
        if self._running.gpu_is_lost():
            raise RuntimeError("CUDA has failed in this process")
        return {"done": True}

    def cleanup(self) -> None:
        """Called before the process ends, and between two trials."""
        if self._refused is None:
            self._progress.close()


def run_trials(
    home: Home,
    trials: list[PlannedTrial],
    evaluations: list[Generation],
    max_concurrent: int | None = None,
    fail_fast: bool = False,
    cluster: dict[str, Any] | None = None,
    stop_collapsed: tuple[list[Forecast], float] | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> None:
    """Run trials to their ends. Their states are in the home folder afterwards.

    Args:
        home: where everything is written.
        trials: unfinished trials in start order.
        evaluations: made for every finished trial.
        max_concurrent: trials at a time; None fills the cluster.
        fail_fast: stop all trials at the first failure.
        cluster: arguments for `ray.init`: the `address` of a running cluster, or other resources than this machine's.
        stop_collapsed: forecasts, one per look, and the probability of collapse at which a trial ends as `stopped`; None: never.
        accepted: called once, when the cluster has answered and can hold every trial, before the first trial starts.

    Raises:
        NoResources: a trial needs more than the cluster has, or no cluster answers at the address.
        KeyboardInterrupt: Ctrl-C. Running trials become `interrupted`; the next call resumes them.
    """
    stop = home.root.resolve() / "ray" / f"stop-{uuid.uuid4().hex[:12]}"  # seen by all nodes
    stop.parent.mkdir(parents=True, exist_ok=True)
    folders = [home.trial(t.id) for t in trials]
    held = DeferredSignals(stop, lambda: any(f.is_locked() for f in folders))
    with connected(home, cluster or {}) as scratch, held as signals:
        _check_resources(trials)
        accepted()
        common = {
            "home": str(home.root.resolve()),
            "home_id": home.id,
            "stop": str(stop),
            "evaluate": [e.model_dump() for e in evaluations],
            "command": called_with(),
            "plugins": keep_plugins(home),
        }
        looks = [forecast.look for forecast in stop_collapsed[0]] if stop_collapsed else []
        decided = {t.id: sorted(seen_steps(t.fields.training.steps, look) for look in looks) for t in trials}
        # Passed one by one: Tune copies a whole grid for every trial of it.
        jobs = iter([{"trial": t.as_json(), "decided_at": decided[t.id], **common} for t in trials])
        watch = Watch(_end_process)
        callbacks: list[tune.Callback] = [SignalCheck(signals, lambda: watch.found), RecordFailures(home, fail_fast)]
        if cluster and "address" in cluster:
            by_id = {t.id: t for t in trials}
            callbacks.append(SayWhatIsWaitedFor(lambda trial: _check_resources([by_id[trial]])))
        tuner = tune.Tuner(
            tune.with_resources(TrialWorker, _request),
            param_space={"job": tune.sample_from(lambda: next(jobs))},  # type: ignore[arg-type,misc]  # Ray takes both
            tune_config=tune.TuneConfig(
                num_samples=len(trials), max_concurrent_trials=max_concurrent or 0, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials write their own
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=callbacks,
                stop=None if stop_collapsed is None else StopCollapsed(home, *stop_collapsed),
                verbose=0,
            ),
        )
        try:
            with watch:
                tuner.fit()
        except TrialFailed:
            return
        except RayDied as died:
            raise NoResources(_lost(f"{died}")) from None
        except Exception as error:
            if not comes_from_full_disk(error):
                raise
            raise NoResources(f"{home.root}: the disk is full; free space, then run the same command again") from None


def _lost(what: str) -> str:
    return f"Ray's process {what}, possibly for lack of memory; the same command resumes from the checkpoints"


def _end_process(what: str) -> None:
    """End this process as a kill would: its main thread waits for Ray. Its children end with it."""
    say(f"dsd-lab: {_lost(what)}", error=True)
    os._exit(NO_RESOURCES)


def _request(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Resources of a trial: a bundle per process, packed on few machines."""
    requested = Resources.model_validate(config["job"]["trial"]["fields"]["resources"])
    gpus = {"GPU": requested.gpus_of_process} if requested.gpus else {}
    return tune.PlacementGroupFactory([{"CPU": requested.cpus, **gpus} for _ in range(requested.team)], strategy="PACK")


def _check_resources(trials: list[PlannedTrial]) -> None:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    where = "here" if len(machines) == 1 else "on the largest machine"
    for trial in trials:
        resources = trial.fields.resources
        wanted = {"CPU": resources.cpus, "GPU": resources.gpus_of_process}
        for name, count in wanted.items():
            has = max((machine.get(name, 0) for machine in machines), default=0)
            if count > has:
                raise NoResources(
                    f"resources.{name.lower()}s: trial {trial.name!r} needs {count:g}, but there are {has:g} {where}"
                )
        requested = " and ".join(f"{count:g} {name}s" for name, count in wanted.items() if count)
        fits = [
            min(int(machine.get(name, 0) / count) for name, count in wanted.items() if count) for machine in machines
        ]
        if max(fits) < 1:
            raise NoResources(
                f"resources: trial {trial.name!r} needs {requested}, more than any single machine of the cluster has"
            )
        if sum(fits) < resources.team:
            raise NoResources(
                f"resources.processes: trial {trial.name!r} needs {resources.team} processes with {requested} each, but the cluster has room for {sum(fits)}"
            )
