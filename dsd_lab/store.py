"""The store: everything MLflow is here.

An uploader process replays the spools of a sweep's trials into MLflow: one experiment a spec name,
a parent run a sweep, a child run a trial, found again by their tags. A run's tag `dsd.lines` counts
the spool lines that it holds and is written in the same transaction as their metrics, so replaying
a spool duplicates nothing. Training never waits for the store; a store that is down costs only time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from safetensors.torch import save_file
from sqlalchemy.exc import SQLAlchemyError

from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.errors import CorruptCheckpoint, LabError
from dsd_lab.history import write_history
from dsd_lab.home import Home, TrialFolder, locked
from dsd_lab.spool import read_spool

STORE_ERRORS = (MlflowException, SQLAlchemyError, requests.RequestException, OSError)
_RUN_STATUS = {"done": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_BATCH = 900
"""Metrics a call; MLflow takes at most 1,000."""
_POLL = 2.0
"""Seconds between passes of the uploader."""


class StoreUnavailable(LabError):
    """The store cannot be reached; spools are kept and replayed later."""


def default_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, else SQLite in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve() / 'mlflow.db'}"


@dataclass
class StoredTrial:
    """What the store holds of a trial of a sweep."""

    entry: dict[str, Any]
    """The trial's row of the sweep's manifest."""
    tags: dict[str, str]
    metrics: dict[str, float]
    folder: Path | None
    """Downloaded artifacts: history.parquet, trial.json, final/*.png; None where the trial never started."""


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
    _lines: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.uri = self.uri or default_uri(self.home.root)
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        with locked(self.home.root / ".mlflow.lock"):
            try:
                self.client = MlflowClient(tracking_uri=self.uri)
                self.client.search_experiments(max_results=1)
            except STORE_ERRORS as error:
                raise StoreUnavailable(f"the store {self.uri} does not answer: {_first_line(error)}") from None

    # -- Writing -------------------------------------------------------------------------------------

    def sync(self, manifest: dict[str, Any]) -> int:
        """Bring the store up to the files of a sweep's trials; returns the spool lines that were new.

        Raises:
            StoreUnavailable: the store failed half-way; the next call goes on from there.
        """
        with locked(self.home.root / ".upload.lock"):
            try:
                experiment = self._experiment(manifest)
                parent = self._parent(experiment, manifest)
                differing = _differing(manifest["trials"])
                known = {t["id"]: self.home.trial(t["id"]) for t in manifest["trials"]}
                return sum(
                    self._sync_trial(experiment, parent, manifest, t, known[t["id"]], differing)
                    for t in manifest["trials"]
                )
            except STORE_ERRORS as error:
                self._runs.clear()
                self._seen.clear()
                raise StoreUnavailable(f"the store {self.uri} failed: {_first_line(error)}") from None

    def attach_report(self, manifest: dict[str, Any], folder: Path) -> None:
        """Add the report's pages to the sweep's parent run."""
        with locked(self.home.root / ".upload.lock"):
            parent = self._parent(self._experiment(manifest), manifest)
            for name in ("report.html", "report.md"):
                self.client.log_artifact(parent, str(folder / name), "report")

    def _experiment(self, manifest: dict[str, Any]) -> str:
        name = manifest["name"]
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        assert self.uri is not None
        local = self.uri.startswith("sqlite:")
        artifacts = (self.home.root.resolve() / "mlartifacts" / name).as_uri() if local else None
        return str(self.client.create_experiment(name, artifacts, {"mlflow.note.content": manifest["why"]}))

    def _parent(self, experiment: str, manifest: dict[str, Any]) -> str:
        key = manifest["key"]
        run_id = self._find(experiment, "sweep", f"tags.`dsd.sweep` = '{key}'")
        if run_id is None:
            tags = {"dsd.kind": "sweep", "dsd.sweep": key, "mlflow.note.content": manifest["why"]}
            run_id = self.client.create_run(experiment, tags=tags, run_name=key).info.run_id
            self._runs[f"sweep {key}"] = run_id
        spec = json.dumps(manifest["spec"], indent=1)
        if self._runs.get(f"spec {key}") != spec:
            self.client.log_text(run_id, spec, "spec.json")
            self._runs[f"spec {key}"] = spec
        return run_id

    def _find(self, experiment: str, kind: str, condition: str) -> str | None:
        slot = f"{kind} {condition}"
        if slot not in self._runs:
            runs = self.client.search_runs([experiment], f"tags.`dsd.kind` = '{kind}' and {condition}", max_results=1)
            if not runs:
                return None
            self._runs[slot] = runs[0].info.run_id
        return self._runs[slot]

    def _sync_trial(
        self,
        experiment: str,
        parent: str,
        manifest: dict[str, Any],
        entry: dict[str, Any],
        folder: TrialFolder,
        differing: list[str],
    ) -> int:
        state = folder.state()
        seen = f"{state} {_size(folder.spool)} {len(list(folder.root.glob('evaluations/*.json')))}"
        if self._seen.get(entry["name"]) == seen:
            return 0  # nothing has changed since the last pass
        description = folder.description()
        if state == "pending" or description is None:
            return 0
        run_id = self._trial_run(entry["id"])
        if run_id is None:
            run_id = self._create_child(experiment, parent, manifest["key"], entry, description, differing, "trial")
            self._runs[f"trial {entry['id']}"] = run_id
        new = self._replay(run_id, folder)
        self._evaluations(run_id, folder)
        self._settle(run_id, folder, state)
        self._seen[entry["name"]] = seen
        tags = self._tags(run_id)
        if tags["dsd.sweep"] != manifest["key"] and state in ("done", "diverged"):
            self._pointer(experiment, parent, manifest["key"], entry, description, differing, run_id)
        return new

    def _trial_run(self, trial_id: str) -> str | None:
        """The run of a trial in whichever experiment it was first trained."""
        slot = f"trial {trial_id}"
        if slot not in self._runs:
            experiments = [e.experiment_id for e in self.client.search_experiments()]
            runs = self.client.search_runs(
                experiments, f"tags.`dsd.kind` = 'trial' and tags.`dsd.trial` = '{trial_id}'", max_results=1
            )
            if not runs:
                return None
            self._runs[slot] = runs[0].info.run_id
        return self._runs[slot]

    def _create_child(
        self,
        experiment: str,
        parent: str,
        key: str,
        entry: dict[str, Any],
        description: dict[str, Any],
        differing: list[str],
        kind: str,
    ) -> str:
        origin = description["provenance"]
        tags = {
            "mlflow.parentRunId": parent,
            "dsd.kind": kind,
            "dsd.sweep": key,
            "dsd.trial": entry["id"],
            "dsd.variant": entry["variant"],
            "dsd.size": entry["size"],
            "dsd.seed": str(entry["seed"]),
            "dsd.device": origin["device"],
            "dsd.code": origin["code"],
            "dsd.git_dirty": str(origin["git_dirty"]).lower(),
            "dsd.data": description["data"]["fingerprint"][:16],
            **({"mlflow.source.git.commit": origin["git_commit"]} if origin["git_commit"] else {}),
            **{f"dsd.version.{name}": version for name, version in origin["versions"].items()},
        }
        started = self.home.trial(entry["id"]).status().get("started", time.time())
        run = self.client.create_run(experiment, start_time=int(started * 1000), tags=tags, run_name=entry["name"])
        flat = _flat(entry["canonical"])
        params = {
            "variant": entry["variant"],
            "size": entry["size"],
            "seed": entry["seed"],
            **{k: flat.get(k, "-") for k in differing},
        }
        self.client.log_batch(run.info.run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])
        return str(run.info.run_id)

    def _tags(self, run_id: str) -> dict[str, str]:
        return dict(self.client.get_run(run_id).data.tags)

    def _replay(self, run_id: str, folder: TrialFolder) -> int:
        size = _size(folder.spool)
        if self._lines.get(folder.id) == size:
            return 0
        held = int(self._tags(run_id).get("dsd.lines", 0))
        metrics: list[Metric] = []
        new = 0
        for entry in read_spool(folder.spool):
            if entry["n"] < held:
                continue
            stamp = int(entry["time"] * 1000)
            if entry["kind"] == "images":
                self._upload_images(run_id, folder, entry, stamp)
            fresh = [Metric(name, value, stamp, entry["step"]) for name, value in entry.get("metrics", {}).items()]
            if len(metrics) + len(fresh) > _BATCH:
                self._flush(run_id, metrics, entry["n"])
                metrics = []
            metrics += fresh
            new = entry["n"] + 1 - held
        if new:
            self._flush(run_id, metrics, held + new)
        self._lines[folder.id] = size
        return new

    def _flush(self, run_id: str, metrics: list[Metric], lines: int) -> None:
        # One call, one transaction: the metrics and the count of lines that they came from.
        self.client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.lines", str(lines))])

    def _upload_images(self, run_id: str, folder: TrialFolder, entry: dict[str, Any], stamp: int) -> None:
        there = [Path(item.path).name for item in self.client.list_artifacts(run_id, "images")]
        for name in entry["files"]:
            key = name.rsplit("-", 1)[0]
            marked = (f"{key}%step%{entry['step']}%", f"{key}+step+{entry['step']}+")
            if not any(file.startswith(marked) for file in there) and (folder.images / name).exists():
                self.client.log_image(
                    run_id,
                    Image.open(folder.images / name),
                    key=key,
                    step=entry["step"],
                    timestamp=stamp,
                    synchronous=True,
                )

    def _evaluations(self, run_id: str, folder: TrialFolder) -> None:
        done = folder.evaluations()
        if not done or self._lines.get(f"{folder.id} evaluations") == len(done):
            return
        held = set(filter(None, self._tags(run_id).get("dsd.evaluations", "").split(",")))
        step, stamp = int(folder.status()["step"]), int(time.time() * 1000)
        for key, content in done.items():
            if key not in held:
                held.add(key)
                metrics = [Metric(name, value, stamp, step) for name, value in content["metrics"].items()]
                self.client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.evaluations", ",".join(sorted(held)))])
                self.client.log_artifact(run_id, str(folder.images / f"evaluation-{key}.png"), "final")
                self.client.log_dict(run_id, content, f"evaluations/{key}.json")
        self._lines[f"{folder.id} evaluations"] = len(done)

    def _settle(self, run_id: str, folder: TrialFolder, state: str) -> None:
        """Record the state; the artifacts of an ended trial are added once for each state and length of its spool."""
        settled = f"{state} {self._lines.get(folder.id)}"
        if self._runs.get(f"settled {folder.id}") == settled or self._tags(run_id).get("dsd.settled") == settled:
            return
        status = folder.status()
        with tempfile.TemporaryDirectory() as scratch:
            write_history(folder.spool, Path(scratch) / "history.parquet")
            self.client.log_artifact(run_id, str(Path(scratch) / "history.parquet"))
            self.client.log_artifact(run_id, str(folder.root / "trial.json"))
            if state in ("done", "diverged"):
                _final_artifacts(folder, Path(scratch))
                self.client.log_artifacts(run_id, str(Path(scratch) / "final"), "final")
        tags = {
            "dsd.state": state,
            "dsd.step": status.get("step", 0),
            "dsd.seconds": status.get("seconds", 0.0),
            "dsd.attempt": status.get("attempt", 1),
        }
        if status.get("error"):
            tags["dsd.error"] = str(status["error"])[:500]
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        if state == "running":
            self.client.update_run(run_id, status="RUNNING")
        else:
            ended = int(float(status.get("updated", time.time())) * 1000)
            self.client.set_terminated(run_id, _RUN_STATUS[state], ended)
            self.client.set_tag(run_id, "dsd.settled", settled)
        self._runs[f"settled {folder.id}"] = settled

    def _pointer(
        self,
        experiment: str,
        parent: str,
        key: str,
        entry: dict[str, Any],
        description: dict[str, Any],
        differing: list[str],
        target: str,
    ) -> None:
        """A short child run in this sweep for a trial that another sweep trained: its final metrics and where it is."""
        pointer = self._find(
            experiment, "pointer", f"tags.`dsd.sweep` = '{key}' and tags.`dsd.trial` = '{entry['id']}'"
        )
        if pointer is None:
            pointer = self._create_child(experiment, parent, key, entry, description, differing, "pointer")
            self.client.set_tag(pointer, "dsd.points_to", target)
        found = self.client.get_run(target)
        count = str(len(found.data.metrics))
        if self._tags(pointer).get("dsd.metrics") != count:
            step, stamp = int(found.data.tags.get("dsd.step", 0)), int(time.time() * 1000)
            metrics = [Metric(name, value, stamp, step) for name, value in found.data.metrics.items()]
            self.client.log_batch(pointer, metrics=metrics[:_BATCH], tags=[RunTag("dsd.metrics", count)])
            self.client.set_terminated(pointer, "FINISHED")

    # -- Reading -------------------------------------------------------------------------------------

    def read(self, manifest: dict[str, Any], scratch: Path) -> list[StoredTrial]:
        """The trials of a sweep as the store holds them; artifacts are fetched below `scratch` where they are remote.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        wanted = {t["id"] for t in manifest["trials"]}
        try:
            runs = {
                run.data.tags["dsd.trial"]: run for run in self._all_trials() if run.data.tags["dsd.trial"] in wanted
            }
            return [self._stored(entry, runs.get(entry["id"]), scratch) for entry in manifest["trials"]]
        except STORE_ERRORS as error:
            raise StoreUnavailable(f"the store {self.uri} does not answer: {_first_line(error)}") from None

    def _all_trials(self) -> Iterator[Run]:
        experiments, token = [e.experiment_id for e in self.client.search_experiments()], None
        while experiments:
            page = self.client.search_runs(experiments, "tags.`dsd.kind` = 'trial'", max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _stored(self, entry: dict[str, Any], run: Run | None, scratch: Path) -> StoredTrial:
        if run is None:
            return StoredTrial(entry, {"dsd.state": "pending"}, {}, None)
        folder = scratch / entry["id"]
        folder.mkdir(parents=True, exist_ok=True)
        root = (
            run.info.artifact_uri.removeprefix("file://")
            if run.info.artifact_uri.startswith(("file://", "/"))
            else None
        )
        if root is not None and Path(root).is_dir():
            return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), Path(root))
        for name in ("history.parquet", "trial.json", "final"):
            if any(item.path == name for item in self.client.list_artifacts(run.info.run_id)):
                self.client.download_artifacts(run.info.run_id, name, str(folder))
        return StoredTrial(entry, dict(run.data.tags), dict(run.data.metrics), folder)


def _final_artifacts(folder: TrialFolder, scratch: Path) -> None:
    """The last grids under fixed names, and the averaged weights as safetensors."""
    final = scratch / "final"
    final.mkdir()
    for name in ("reconstruction", "samples"):
        grids = sorted(folder.images.glob(f"{name}-*.png"))
        if grids:
            (final / f"{name}.png").write_bytes(grids[-1].read_bytes())
    saved = list_checkpoints(folder.checkpoints)
    if saved:
        try:
            tensors, _ = load_checkpoint(saved[0])
        except CorruptCheckpoint:
            return
        save_file(
            {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")},
            final / "weights.safetensors",
        )


def _differing(trials: list[dict[str, Any]]) -> list[str]:
    """Key paths of the training fields that are not the same in all trials."""
    flats = [_flat(t["canonical"]) for t in trials]
    keys = dict.fromkeys(k for flat in flats for k in flat)
    return [k for k in keys if len({json.dumps(flat.get(k)) for flat in flats}) > 1]


def _flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def upload(home: Path, key: str, uri: str | None) -> int:
    """The uploader process: replay until standard input closes, then once more. 0 where everything is stored."""
    finished = threading.Event()
    threading.Thread(target=_wait_for_end, args=(finished,), daemon=True).start()
    store: Store | None = None
    patience = _POLL
    while True:
        last = finished.is_set()
        try:
            store = store or Store(Home(home), uri)
            store.sync(Home(home).manifests()[key])
            patience = _POLL
        except StoreUnavailable as error:
            if last:
                print(
                    f"dsd-lab: {error}; nothing is lost, `dsd-lab report` or the next sweep replays it", file=sys.stderr
                )
                return 1
            patience = min(60.0, 2 * patience)
        if last:
            return 0
        finished.wait(patience)


def _wait_for_end(finished: threading.Event) -> None:
    sys.stdin.read()
    finished.set()


if __name__ == "__main__":
    sys.exit(upload(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
