"""The store: everything MLflow is here.

The spools of a sweep's trials are replayed into MLflow: one experiment a spec name,
a parent run a sweep, a child run a trial, found again by their tags. A metric is keyed by (run, name,
step). The tag `dsd.lines` counts the spool lines that a run holds and is written after their metrics;
a process that has not written them itself, or that saw the store fail, asks the run which steps it
holds before it adds to them, so that replaying a spool duplicates nothing. Training never waits for
the store; a store that is down costs only time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

# Set before the import: no telemetry, and a dead server is noticed in seconds instead of minutes.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from dsd_lab.artifacts import differing, flat, status_tags, write_artifacts
from dsd_lab.errors import LabError
from dsd_lab.home import ENDED, Home, TrialFolder, locked
from dsd_lab.spool import read_spool

STORE_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException, OSError)
_RUN_STATUS = {"done": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/@\s]*@")
_BATCH = 900
"""Metrics a call; MLflow takes at most 1,000."""


class StoreUnavailable(LabError):
    """The store cannot be reached; spools are kept and replayed later."""


def default_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else SQLite in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(home)


def _own_uri(home: Path) -> str:
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


@dataclass
class StoredTrial:
    """What the store holds of a trial of a sweep."""

    entry: dict[str, Any]
    """The trial's row of the sweep's manifest."""
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path | None
    """Downloaded artifacts: history.parquet, trial.json, final/*.png; None where the trial never started."""


@dataclass(frozen=True)
class _Sweep:
    """Where a sweep is in the store."""

    key: str
    experiment: str
    parent: str
    differing: list[str]


@dataclass
class Store:
    """An MLflow store, opened once; the schema of a new SQLite file is made under a lock.

    Args:
        home: whose trials are stored.
        uri: tracking URI; None takes `default_uri`.

    Raises:
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

    def __post_init__(self) -> None:
        self.uri = self.uri or default_uri(self.home.root)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with locked(self.home.root / ".mlflow.lock"), self._answering():
            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.search_experiments(max_results=1)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except STORE_ERRORS as error:
            for memory in (self._runs, self._seen, self._certain):
                memory.clear()
            lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result of")]
            reason = (lines or [type(error).__name__])[0][:300]
            shown = [_PASSWORD.sub(r"\1***@", text) for text in (str(self.uri), reason)]
            raise StoreUnavailable(f"the store {shown[0]} does not answer: {shown[1]}") from None

    # -- Writing -------------------------------------------------------------------------------------

    def sync(self, manifest: dict[str, Any]) -> int:
        """Bring the store up to the files of a sweep's trials; returns the spool lines that were new.

        Raises:
            StoreUnavailable: the store failed half-way; the next call goes on from there.
        """
        with locked(self.home.root / ".upload.lock"), self._answering():
            sweep = self._sweep(manifest)
            new = sum(self._sync_trial(sweep, entry) for entry in manifest["trials"])
            self._settle_sweep(sweep, {self.home.trial(t["id"]).state() for t in manifest["trials"]})
            return new

    def attach_report(self, manifest: dict[str, Any], folder: Path) -> None:
        """Add the report's pages to the sweep's parent run.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with locked(self.home.root / ".upload.lock"), self._answering():
            for name in ("report.html", "report.md"):
                self.client.log_artifact(self._sweep(manifest).parent, str(folder / name), "report")

    def _sweep(self, manifest: dict[str, Any]) -> _Sweep:
        key, name, why = manifest["key"], manifest["name"], manifest["why"]
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = str(self.uri).startswith("sqlite:")
            artifacts = (self.home.root.resolve() / "mlartifacts" / name).as_uri() if local else None
            # The kind makes MLflow's pages open on training runs instead of traces.
            tags = {"mlflow.note.content": why, "mlflow.experimentKind": "custom_model_development"}
            experiment = str(self.client.create_experiment(name, artifacts, tags))
        else:
            experiment = str(found.experiment_id)
        parent = self._find([experiment], "sweep", f"tags.`dsd.sweep` = '{key}'")
        if parent is None:
            tags = {"dsd.kind": "sweep", "dsd.sweep": key, "mlflow.note.content": why}
            parent = str(self.client.create_run(experiment, tags=tags, run_name=key).info.run_id)
        spec = json.dumps(manifest["spec"], indent=1)
        if self._seen.get(f"{key} spec") != spec:
            self.client.log_text(parent, spec, "spec.json")
            self._seen[f"{key} spec"] = spec
        return _Sweep(key, experiment, parent, differing(manifest["trials"]))

    def _find(self, experiments: list[str], kind: str, condition: str) -> str | None:
        slot = f"{kind} {condition}"
        if slot not in self._runs:
            runs = self.client.search_runs(experiments, f"tags.`dsd.kind` = '{kind}' and {condition}", max_results=1)
            if not runs:
                return None
            self._runs[slot] = runs[0].info.run_id
        return self._runs[slot]

    def _sync_trial(self, sweep: _Sweep, entry: dict[str, Any]) -> int:
        folder = self.home.trial(entry["id"])
        state, status = folder.state(), folder.status()
        size = folder.spool.stat().st_size if folder.spool.exists() else 0
        seen = f"{state} {status.get('attempt')} {size} {len(folder.evaluations())}"
        slot = f"{sweep.key} {entry['name']}"
        if state == "pending" or self._seen.get(slot) == seen:
            return 0
        run = self.client.get_run(self._trial_run(sweep, entry, str(status.get("code"))))
        self._parameters(sweep, entry, run)
        new = 0
        if run.data.tags.get("dsd.settled") != seen:
            new = self._replay(run, folder)
            self._evaluations(run, folder)
            self._settle(run, folder, state, seen)
        if run.data.tags["dsd.sweep"] != sweep.key and state in ENDED:
            self._pointer(sweep, entry, run.info.run_id)
        self._seen[slot] = seen
        return new

    def _trial_run(self, sweep: _Sweep, entry: dict[str, Any], code: str) -> str:
        """The run of a trial in whichever experiment this code first trained it; made where there is none."""
        everywhere = [e.experiment_id for e in self.client.search_experiments()]
        found = self._find(everywhere, "trial", f"tags.`dsd.trial` = '{entry['id']}' and tags.`dsd.code` = '{code}'")
        if found is None:
            found = self._create_child(sweep, entry, "trial", {"dsd.code": code})
            self._certain.add(found)
        return found

    def _create_child(self, sweep: _Sweep, entry: dict[str, Any], kind: str, tags: dict[str, str]) -> str:
        tags = tags | {"mlflow.parentRunId": sweep.parent, "dsd.kind": kind, "dsd.sweep": sweep.key}
        tags |= {"dsd.trial": entry["id"]} | {f"dsd.{k}": str(entry[k]) for k in ("variant", "size", "seed")}
        started = int(1000 * self.home.trial(entry["id"]).status().get("started", time.time()))
        run = self.client.create_run(sweep.experiment, start_time=started, tags=tags, run_name=entry["name"])
        return str(run.info.run_id)

    def _parameters(self, sweep: _Sweep, entry: dict[str, Any], run: Run) -> None:
        """Add the parameters that a run lacks: more of them differ as a sweep grows."""
        fields = flat(entry["canonical"])
        wanted = {k: entry[k] for k in ("variant", "size", "seed")} | {k: fields.get(k, "-") for k in sweep.differing}
        lacking = [Param(k, str(v)[:500]) for k, v in wanted.items() if k not in run.data.params]
        if lacking:
            self.client.log_batch(run.info.run_id, params=lacking)

    def _replay(self, run: Run, folder: TrialFolder) -> int:
        lines, run_id = list(read_spool(folder.spool)), run.info.run_id
        held = counted = int(run.data.tags.get("dsd.lines", 0))
        known: set[tuple[str, int]] = set()
        if run_id not in self._certain and counted != len(lines):
            known = {(key, m.step) for key in run.data.metrics for m in self.client.get_metric_history(run_id, key)}
            held = 0  # metrics may have been stored without the count, or other lines been counted
            self._certain.add(run_id)
        metrics: list[Metric] = []
        for entry in lines[held:]:
            stamp, step = int(entry["time"] * 1000), entry["step"]
            if entry["kind"] == "images":
                self._upload_images(run_id, folder, entry, stamp)
            fresh = {k: v for k, v in entry.get("metrics", {}).items() if (k, step) not in known}
            if len(metrics) + len(fresh) > _BATCH:
                self._flush(run_id, metrics, entry["n"])
                metrics = []
            metrics += [Metric(name, value, stamp, step) for name, value in fresh.items()]
        if len(lines) > held:
            self._flush(run_id, metrics, len(lines))
        return max(0, len(lines) - counted)

    def _flush(self, run_id: str, metrics: list[Metric], lines: int) -> None:
        self.client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.lines", str(lines))])

    def _upload_images(self, run_id: str, folder: TrialFolder, entry: dict[str, Any], stamp: int) -> None:
        there = [Path(item.path).name for item in self.client.list_artifacts(run_id, "images")]
        for name in entry["files"]:
            key, path = name.rsplit("-", 1)[0], folder.images / name
            marked = (f"{key}%step%{entry['step']}%", f"{key}+step+{entry['step']}+")
            if path.exists() and not any(file.startswith(marked) for file in there):
                place = {"key": key, "step": entry["step"], "timestamp": stamp}
                self.client.log_image(run_id, Image.open(path), synchronous=True, **place)

    def _evaluations(self, run: Run, folder: TrialFolder) -> None:
        held = set(filter(None, run.data.tags.get("dsd.evaluations", "").split(",")))
        known, run_id = set(run.data.metrics), run.info.run_id
        step, stamp = int(folder.status().get("step", 0)), int(time.time() * 1000)
        for key, content in folder.evaluations().items():
            if key in held:
                continue
            picture = folder.images / f"evaluation-{key}.png"
            if picture.exists():
                self.client.log_artifact(run_id, str(picture), "final")
            self.client.log_dict(run_id, content, f"evaluations/{key}.json")
            held.add(key)
            fresh = {k: v for k, v in content["metrics"].items() if k not in known}  # evaluations share floors
            metrics = [Metric(k, v, stamp, step) for k, v in fresh.items()]
            known |= set(fresh)
            self.client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.evaluations", ",".join(sorted(held)))])

    def _settle(self, run: Run, folder: TrialFolder, state: str, seen: str) -> None:
        """Record the state and the files that go with it."""
        run_id = run.info.run_id
        with tempfile.TemporaryDirectory() as scratch:
            write_artifacts(folder, state, Path(scratch))
            self.client.log_artifacts(run_id, scratch)
        tags = status_tags(folder, state) | ({} if state == "running" else {"dsd.settled": seen})
        if "dsd.error" in run.data.tags and "dsd.error" not in tags:
            self.client.delete_tag(run_id, "dsd.error")  # it was tried again
        self._set_state(run_id, state, folder.status().get("updated"))
        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def _settle_sweep(self, sweep: _Sweep, states: set[str]) -> None:
        order = ("running", "interrupted", "pending", "failed")
        state = next((s for s in order if s in states), "done")
        if self._seen.get(f"{sweep.key} state") != state:
            self._set_state(sweep.parent, state)
            self._seen[f"{sweep.key} state"] = state

    def _set_state(self, run_id: str, state: str, ended: float | None = None) -> None:
        if state in _RUN_STATUS:
            self.client.set_terminated(run_id, _RUN_STATUS[state], int(1000 * (ended or time.time())))
        else:
            self.client.update_run(run_id, "RUNNING")

    def _pointer(self, sweep: _Sweep, entry: dict[str, Any], target: str) -> None:
        """A short child run in this sweep for a trial that another sweep trained: its final metrics and where it is."""
        trial = f"tags.`dsd.sweep` = '{sweep.key}' and tags.`dsd.trial` = '{entry['id']}'"
        pointer = self._find([sweep.experiment], "pointer", f"{trial} and tags.`dsd.points_to` = '{target}'")
        if pointer is None:
            pointer = self._create_child(sweep, entry, "pointer", {"dsd.points_to": target})
        run, found = self.client.get_run(pointer), self.client.get_run(target)
        self._parameters(sweep, entry, run)
        step, stamp = int(found.data.tags.get("dsd.step", 0)), int(time.time() * 1000)
        lacking = [Metric(k, v, stamp, step) for k, v in found.data.metrics.items() if k not in run.data.metrics]
        tags = [RunTag(k, v) for k, v in found.data.tags.items() if k not in run.data.tags and k.startswith("dsd.")]
        self.client.log_batch(pointer, metrics=lacking[:_BATCH], tags=tags)
        if run.info.status != "FINISHED":
            self._set_state(pointer, "done")

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
            orphans = [run for run in self._all_runs("attributes.status = 'RUNNING'") if self._is_orphan(run)]
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
        folder = self.home.sweep_folder(sweep) if trial is None else self.home.trial(trial).root
        ours = self.uri == _own_uri(self.home.root) or folder.exists()
        return ours and not (trial is not None and self.home.trial(trial).is_locked())

    # -- Reading -------------------------------------------------------------------------------------

    def read(self, manifest: dict[str, Any], scratch: Path) -> list[StoredTrial]:
        """The trials of a sweep as the store holds them; artifacts are fetched below `scratch` where they are remote.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._answering():
            trials = self._all_runs("tags.`dsd.kind` = 'trial'")  # of two runs of one trial, the later one is read
            runs = {run.data.tags["dsd.trial"]: run for run in trials}
            return [self._stored(entry, runs.get(entry["id"]), scratch) for entry in manifest["trials"]]

    def _all_runs(self, condition: str) -> Iterator[Run]:
        """All runs that meet a condition; what began later comes later."""
        experiments, token = [e.experiment_id for e in self.client.search_experiments()], None
        while experiments:
            page = self.client.search_runs(experiments, condition, 1, 1000, ["attributes.start_time ASC"], token)
            yield from page
            token = page.token
            if not token:
                return

    def _stored(self, entry: dict[str, Any], run: Run | None, scratch: Path) -> StoredTrial:
        if run is None:
            return StoredTrial(entry, {"dsd.state": "pending"}, {}, None)
        place = urlparse(run.info.artifact_uri)
        folder = Path(unquote(place.path))
        if place.scheme not in ("", "file") or not folder.is_dir():
            folder = scratch / entry["id"]
            folder.mkdir(parents=True, exist_ok=True)
            for item in self.client.list_artifacts(run.info.run_id):
                if item.path in ("history.parquet", "trial.json", "final"):
                    self.client.download_artifacts(run.info.run_id, item.path, str(folder))
        return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), folder)
