"""The store: everything MLflow is here, in `replay.py` (one trial's files into its run) and in `reading.py`.

The spools of a sweep's trials are replayed into MLflow: one experiment a spec name,
a parent run a sweep, a child run a trial, found again by their tags. A metric is keyed by (run, name,
step). Replaying a spool duplicates nothing. Training never waits for the store; a store that is down
costs only time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from dsd_lab.errors import BadInput
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import ENDED, Home, TrialFolder
from dsd_lab.store.artifacts import differing, flat
from dsd_lab.store.faults import STORE_ERRORS, StoreUnavailable
from dsd_lab.store.moved import artifacts_uri, relocate
from dsd_lab.store.reading import StoredTrial, SweepRuns, local_folder, stored_trial
from dsd_lab.store.replay import BATCH, bring_up, set_state
from dsd_lab.store.shared import Ours
from dsd_lab.store.system_metrics import read_samples
from dsd_lab.store.uri import default_uri, own_uri, refuse_files

_FOLLOWING = ("dsd.settled", "dsd.evaluations")
"""Tags of a pointer that follow those of the run that it points to."""


@dataclass
class Store:
    """An MLflow store, opened once; the schema of a new SQLite file is made under a lock.

    Args:
        home: whose trials are stored.
        uri: tracking URI; None takes `default_uri`.

    Raises:
        BadInput: the address is none of a store that can be used.
        StoreUnavailable: the store does not answer.
    """

    home: Home
    uri: str | None = None
    _runs: dict[str, str] = field(default_factory=dict)
    """Run ids by what was searched for."""
    _seen: dict[str, str] = field(default_factory=dict)
    """What each trial's files were at the last pass."""
    _certain: set[str] = field(default_factory=set)
    """Runs whose tag `dsd.lines` is known to be true."""
    _current: list[Run] | None = None
    """Runs of trials as the last pass found them, where it had nothing to write: a report need not ask again."""

    def __post_init__(self) -> None:
        self.uri = self.uri or default_uri(self.home.root)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It prints the traceback of every fault of a database, which `_answering` tells of in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        refuse_files(self.uri)
        with locked(self.home.root / ".mlflow.lock"), self._answering():
            own = self.uri == own_uri(self.home.root)
            if self.uri.startswith("sqlite:///"):
                relocate(Path(self.uri.removeprefix("sqlite:///")), self.home.root, self.home.id, own)
            _artifact_repos_cache.clear()  # by run alone: a copy of a home has the same runs elsewhere
            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.search_experiments(max_results=1)
            self.ours = Ours(self.client, self.home, own, _say)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except STORE_ERRORS as error:
            for memory in (self._runs, self._seen, self._certain):
                memory.clear()
            lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result of")]
            reason = (lines or [type(error).__name__])[0][:300]
            told = without_password(f"the store {self.uri} does not answer: {reason}", str(self.uri))
            raise StoreUnavailable(told) from None

    # -- Writing -------------------------------------------------------------------------------------

    def sync(self, manifest: dict[str, Any]) -> int:
        """Bring the store up to the files of a sweep's trials; returns the spool lines that were new.

        Raises:
            StoreUnavailable: the store failed half-way; the next call goes on from there.
        """
        with locked(self.home.root / ".upload.lock"), self._answering():
            sweep = self._sweep(manifest)
            new, faults = 0, []
            for entry in manifest["trials"]:
                try:
                    new += self._sync_trial(sweep, entry)
                except BadInput as error:  # a damaged file of one trial keeps no other from being stored
                    faults.append(error)
            self._sync_machine(sweep)
            self._settle_sweep(sweep, manifest)
            if faults:
                raise faults[0]
            return new

    def attach_report(self, manifest: dict[str, Any], folder: Path, place: str = "report") -> None:
        """Add the report's pages to the sweep's parent run, below `place`.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with locked(self.home.root / ".upload.lock"), self._answering():
            for name in ("report.html", "report.md"):
                self.client.log_artifact(self._sweep(manifest).parent, str(folder / name), place)

    def _sweep(self, manifest: dict[str, Any]) -> SweepRuns:
        key, name, why = manifest["key"], manifest["name"], manifest["why"]
        local = str(self.uri).startswith("sqlite:")
        experiment = self.ours.experiment(name, why, artifacts_uri(self.home.root) if local else None)
        parent = self._find([experiment], "sweep", f"tags.`dsd.sweep` = '{key}'")
        if parent is None:
            tags = {"dsd.kind": "sweep", "dsd.sweep": key, "dsd.home": self.home.id, "mlflow.note.content": why}
            tags |= {"dsd.command": str(manifest["command"])[:5000]} if manifest.get("command") else {}
            began = int(1000 * manifest["run_at"])
            parent = str(self.client.create_run(experiment, start_time=began, tags=tags, run_name=key).info.run_id)
        spec = json.dumps(manifest["spec"], indent=1)
        if self._seen.get(f"{key} spec") != spec:
            self.client.log_text(parent, spec, "spec.json")
            self._seen[f"{key} spec"] = spec
        trials: dict[tuple[str, str], Run] = {}
        pointers: dict[str, Run] = {}
        everywhere = self.ours.experiments()
        if f"{key} state" not in self._seen:
            self._current = self.ours.runs("tags.`dsd.kind` = 'trial'", everywhere)
            for run in self._current:
                trials.setdefault((run.data.tags["dsd.trial"], run.data.tags["dsd.code"]), run)
            condition = f"tags.`dsd.kind` = 'pointer' and tags.`dsd.sweep` = '{key}'"
            pointers = {run.data.tags["dsd.points_to"]: run for run in self.ours.runs(condition, everywhere)}
        return SweepRuns(key, experiment, parent, differing(manifest["trials"]), trials, pointers, everywhere)

    def _find(self, experiments: list[str], kind: str, condition: str) -> str | None:
        slot = f"{kind} {condition}"
        if slot not in self._runs:
            wanted = f"tags.`dsd.kind` = '{kind}' and {condition}"
            runs = self.ours.runs(wanted, experiments)
            if not runs:
                runs = self.ours.runs(wanted, experiments, deleted=True)
                for run in runs[:1]:
                    self.client.restore_run(run.info.run_id)
                    _say(f"the run {run.info.run_name!r} had been deleted from the store; it is restored")
            if not runs:
                return None
            self._runs[slot] = runs[0].info.run_id
        return self._runs[slot]

    def _sync_trial(self, sweep: SweepRuns, entry: dict[str, Any]) -> int:
        folder = self.home.trial(entry["id"])
        state, status = folder.state(), folder.status()
        size = folder.spool.stat().st_size if folder.spool.exists() else 0
        seen = f"{state} {status.get('attempt')} {size} {len(folder.evaluations())}"
        slot = f"{sweep.key} {entry['name']}"
        if state == "pending" or self._seen.get(slot) == seen:
            return 0
        code, new = str(status.get("code")), 0
        if not self._is_settled(sweep, entry, state, code, seen):
            self._current = None
            run = self.client.get_run(self._trial_run(sweep, entry, code))
            self._parameters(sweep, entry, run)
            if self._is_orphaned(sweep, run):
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", sweep.parent)
            lost = _has_lost_artifacts(run, folder)
            if lost:
                _say(f"the artifacts of {entry['name']!r} were gone from the store; they are written anew")
            if run.data.tags.get("dsd.settled") != seen or lost:
                new = bring_up(self.client, run, folder, state, seen, self._certain, lost)
            if run.data.tags["dsd.sweep"] != sweep.key and state in ENDED:
                self._pointer(sweep, entry, run.info.run_id)
        self._seen[slot] = seen
        return new

    def _is_settled(self, sweep: SweepRuns, entry: dict[str, Any], state: str, code: str, seen: str) -> bool:
        """Whether the first look at all runs showed that nothing of a trial is lacking."""
        run = sweep.trials.get((entry["id"], code))
        if run is None or run.data.tags.get("dsd.settled") != seen or self._lacking(sweep, entry, run):
            return False
        if self._is_orphaned(sweep, run) or _has_lost_artifacts(run, self.home.trial(entry["id"])):
            return False
        if run.data.tags["dsd.sweep"] == sweep.key or state not in ENDED:
            return True
        pointer = sweep.pointers.get(run.info.run_id)
        return (
            pointer is not None
            and pointer.info.status == "FINISHED"
            and pointer.data.tags.get("dsd.settled") == seen
            and not self._lacking(sweep, entry, pointer)
        )

    def _is_orphaned(self, sweep: SweepRuns, run: Run) -> bool:
        """Whether a run of this sweep has another parent: one that was deleted for good."""
        tags = run.data.tags
        return tags["dsd.sweep"] == sweep.key and tags.get("mlflow.parentRunId") != sweep.parent

    def _trial_run(self, sweep: SweepRuns, entry: dict[str, Any], code: str) -> str:
        """The run of a trial in whichever experiment this code first trained it; made where there is none."""
        found = self._find(
            sweep.everywhere, "trial", f"tags.`dsd.trial` = '{entry['id']}' and tags.`dsd.code` = '{code}'"
        )
        if found is None:
            found = self._create_child(sweep, entry, "trial", {"dsd.code": code})
            self._certain.add(found)
        return found

    def _create_child(self, sweep: SweepRuns, entry: dict[str, Any], kind: str, tags: dict[str, str]) -> str:
        tags = tags | {"mlflow.parentRunId": sweep.parent, "dsd.kind": kind, "dsd.sweep": sweep.key}
        tags["dsd.home"] = self.home.id
        tags |= {"dsd.trial": entry["id"]} | {f"dsd.{k}": str(entry[k]) for k in ("variant", "size", "seed")}
        started = int(1000 * self.home.trial(entry["id"]).status().get("started", time.time()))
        run = self.client.create_run(sweep.experiment, start_time=started, tags=tags, run_name=entry["name"])
        return str(run.info.run_id)

    def _parameters(self, sweep: SweepRuns, entry: dict[str, Any], run: Run) -> None:
        """Add the parameters that a run lacks: more of them differ as a sweep grows."""
        lacking = self._lacking(sweep, entry, run)
        if lacking:
            self.client.log_batch(run.info.run_id, params=lacking)

    def _lacking(self, sweep: SweepRuns, entry: dict[str, Any], run: Run) -> list[Param]:
        fields = flat(entry["canonical"])
        wanted = {k: entry[k] for k in ("variant", "size", "seed")} | {k: fields.get(k, "-") for k in sweep.differing}
        return [Param(k, str(v)[:500]) for k, v in wanted.items() if k not in run.data.params]

    def _sync_machine(self, sweep: SweepRuns) -> None:
        """The machine's load while the sweep ran, under MLflow's own names; a sample's step is its number."""
        samples = read_samples(self.home.sweep_folder(sweep.key))
        slot = f"{sweep.key} machine"
        if slot not in self._seen:
            run = self.client.get_run(sweep.parent)
            names = [name for name in run.data.metrics if name.startswith("system/")]
            held = [m.step for name in names for m in self.client.get_metric_history(sweep.parent, name)]
            self._seen[slot] = str(max(held, default=-1) + 1)
        for step, sample in list(enumerate(samples))[int(self._seen[slot]) :]:
            stamp = int(1000 * sample["time"])
            metrics = [Metric(name, value, stamp, step) for name, value in sample["metrics"].items()]
            self.client.log_batch(sweep.parent, metrics=metrics)
            self._seen[slot] = str(step + 1)

    def _settle_sweep(self, sweep: SweepRuns, manifest: dict[str, Any]) -> None:
        trials = [self.home.trial(t["id"]) for t in manifest["trials"]]
        order, states = ("running", "interrupted", "pending", "failed"), {t.state() for t in trials}
        state = next((s for s in order if s in states), "done")
        if self._seen.get(f"{sweep.key} state") != state:
            # It ended with its last trial, not when it was last looked at; all may have been trained before it began.
            ended = max([manifest["run_at"], *(t.status().get("updated", 0.0) for t in trials)])
            set_state(self.client, sweep.parent, state, ended)
            self._seen[f"{sweep.key} state"] = state

    def _pointer(self, sweep: SweepRuns, entry: dict[str, Any], target: str) -> None:
        """A short child run in this sweep for a trial that another sweep trained: its final metrics and where it is."""
        trial = f"tags.`dsd.sweep` = '{sweep.key}' and tags.`dsd.trial` = '{entry['id']}'"
        pointer = self._find([sweep.experiment], "pointer", f"{trial} and tags.`dsd.points_to` = '{target}'")
        if pointer is None:
            pointer = self._create_child(sweep, entry, "pointer", {"dsd.points_to": target})
        run, found = self.client.get_run(pointer), self.client.get_run(target)
        self._parameters(sweep, entry, run)
        step, stamp = int(found.data.tags.get("dsd.step", 0)), int(time.time() * 1000)
        lacking = [Metric(k, v, stamp, step) for k, v in found.data.metrics.items() if k not in run.data.metrics]
        own = {k for k in run.data.tags if k not in _FOLLOWING}
        tags = [RunTag(k, v) for k, v in found.data.tags.items() if k.startswith("dsd.") and k not in own]
        self.client.log_batch(pointer, metrics=lacking[:BATCH], tags=tags)
        if run.info.status != "FINISHED":
            set_state(self.client, pointer, "done", self.home.trial(entry["id"]).status().get("updated"))

    def close_orphans(self, dry_run: bool = False) -> list[str]:
        """Close as KILLED the runs that say RUNNING though nobody works on their trial; returns their names.

        What a power cut or a killed uploader leaves. The next `sync` gives such a run the state that its
        trial's files have. Runs of other homes in a shared store are not ours to judge.

        Args:
            dry_run: only find them.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with locked(self.home.root / ".upload.lock"), self._answering():
            orphans = [run for run in self.ours.runs("attributes.status = 'RUNNING'") if self._is_orphan(run)]
            for run in [] if dry_run else orphans:
                ended = self.home.trial(run.data.tags.get("dsd.trial", "-")).status().get("updated", time.time())
                self.client.set_terminated(run.info.run_id, "KILLED", int(1000 * ended))
                if "dsd.settled" in run.data.tags:
                    self.client.delete_tag(run.info.run_id, "dsd.settled")
            return [str(run.info.run_name) for run in orphans]

    def _is_orphan(self, run: Run) -> bool:
        tags = run.data.tags
        sweep, trial = tags.get("dsd.sweep"), tags.get("dsd.trial")
        if sweep is None or self.home.sweep_is_running(sweep):
            return False
        return not (trial is not None and self.home.trial(trial).is_locked())

    # -- Reading -------------------------------------------------------------------------------------

    def read(self, manifest: dict[str, Any], scratch: Path) -> list[StoredTrial]:
        """The trials of a sweep as the store holds them; artifacts are fetched below `scratch` where they are remote.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._answering():
            trials, self._current = self._current, None
            if trials is None:
                trials = self.ours.runs("tags.`dsd.kind` = 'trial'")
            # of two runs of one trial, the later one
            runs = {run.data.tags["dsd.trial"]: run for run in trials}
            return [self._stored(entry, runs.get(entry["id"]), scratch) for entry in manifest["trials"]]

    def _stored(self, entry: dict[str, Any], run: Run | None, scratch: Path) -> StoredTrial:
        """A trial as the store holds it; files that a server has lost are written anew."""
        found = stored_trial(self.client, entry, run, scratch)
        folder = self.home.trial(entry["id"])
        lost = found.folder is not None and not (found.folder / "history.parquet").exists()
        if run is None or not lost or folder.description() is None or folder.is_locked():
            return found
        _say(f"the artifacts of {entry['name']!r} were gone from the store; they are written anew")
        bring_up(
            self.client, run, folder, folder.state(), str(run.data.tags.get("dsd.settled")), self._certain, anew=True
        )
        return stored_trial(self.client, entry, self.client.get_run(run.info.run_id), scratch)


def _has_lost_artifacts(run: Run, folder: TrialFolder) -> bool:
    """Whether a run that had all of its trial's files has them no more; asks no server."""
    place = local_folder(run)
    if place is None or "dsd.settled" not in run.data.tags or folder.description() is None:
        return False
    names = ("trial.json", "history.parquet", *(["final"] if run.data.tags.get("dsd.state") in ENDED else []))
    return not all((place / name).exists() for name in names)


def _say(line: str) -> None:
    say(f"dsd-lab: {line}", error=True)
