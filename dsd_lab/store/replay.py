"""Copy a trial's files into its MLflow run: metrics, images, evaluations, dataset, state.

The tag `dsd.lines` counts the spool lines in a run and is written after their metrics. If this process did not
write them, or the store failed meanwhile, the run is asked which values it has before more are added. A repeated
replay therefore duplicates nothing, and a trial that was trained again elsewhere gets its new values.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run, RunTag

from dsd_lab.evaluation.metric_names import OVER_TRAINING
from dsd_lab.files.image_files import DamagedImage, open_grid
from dsd_lab.home.spool import is_whole_picture, read_spool
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import SpoolLine
from dsd_lab.specs.data import Data
from dsd_lab.specs.metrics import STD
from dsd_lab.store.artifacts import status_tags, write_artifacts

RUN_STATUS = {
    "done": "FINISHED",
    "diverged": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "stopped": "KILLED",
}
_VARIANCE = "latent/variance"
BATCH = 900
"""Metrics per call; MLflow allows 1,000."""


def sync_run(
    client: MlflowClient,
    run: Run,
    folder: TrialFolder,
    state: str,
    seen: str,
    verified_runs: set[str],
    reupload: bool = False,
) -> int:
    """Add to a trial's run what its folder has and the run lacks. Returns the number of new spool lines.

    Args:
        client: of the store.
        run: the trial's, up to date.
        folder: the trial's.
        state: of the trial.
        seen: signature of the trial's files when its state was read; becomes the tag `dsd.settled` of a complete run.
        verified_runs: runs whose tag `dsd.lines` is verified; this run is added.
        reupload: upload all artifacts again, since they are missing.
    """
    if "dsd.settled" in run.data.tags:  # of an earlier training, whose files may have had the same signature
        client.delete_tag(run.info.run_id, "dsd.settled")
    if reupload:
        _pictures(client, run, folder)
    new = _replay(client, run, folder, verified_runs)
    _evaluations(client, run, folder, reupload)
    _data_set(client, run, folder)
    _settle(client, run, folder, state, seen)
    return new


def set_state(client: MlflowClient, run_id: str, state: str, ended: float | None = None) -> None:
    """Set the run status for a state of a trial or sweep."""
    if state in RUN_STATUS:
        client.set_terminated(run_id, RUN_STATUS[state], int(1000 * (ended or time.time())))
    else:
        client.update_run(run_id, "RUNNING")


def _replay(client: MlflowClient, run: Run, folder: TrialFolder, verified_runs: set[str]) -> int:
    lines, run_id = list(read_spool(folder.spool)), run.info.run_id
    held = counted = int(run.data.tags.get("dsd.lines", 0))
    known: dict[tuple[str, int], float] = {}
    if run_id not in verified_runs and counted != len(lines):
        histories = (client.get_metric_history(run_id, key) for key in run.data.metrics)
        newest = sorted((m for history in histories for m in history), key=lambda m: m.timestamp)
        known = {(m.key, m.step): m.value for m in newest}
        held = 0  # the count may be wrong: metrics are stored before it
        last = lines[-1].step if lines else -1
        if all(step <= last for _, step in known):  # a resumed trial records again what the run has beyond its spool
            verified_runs.add(run_id)
    metrics: list[Metric] = []
    for line in lines[held:]:
        stamp = int(line.time * 1000)
        if line.kind == "images":
            _upload_images(client, run_id, folder, line, stamp)
        fresh = _lacking(line, known)
        if len(metrics) + len(fresh) > BATCH:
            _flush(client, run_id, metrics, line.n)
            metrics = []
        metrics += [Metric(name, value, stamp, line.step) for name, value in fresh.items()]
    if len(lines) > held:
        _flush(client, run_id, metrics, len(lines))
    return max(0, len(lines) - counted)


def stored_metrics(line: SpoolLine) -> dict[str, float]:
    """Metrics of a spool line in the store, with the std of the latents, since MLflow's charts cannot take roots."""
    metrics = line.measured()
    return metrics | ({STD.recorded: metrics[_VARIANCE] ** 0.5} if metrics.get(_VARIANCE, -1.0) >= 0 else {})


def _lacking(line: SpoolLine, known: dict[tuple[str, int], float]) -> dict[str, float]:
    """Metrics of a line that the store does not have, or has with another value."""
    speed = {} if line.machine is None else line.machine.metrics()  # differs at every repetition: the first stays
    return {
        name: value
        for name, value in stored_metrics(line).items()
        if (found := known.get((name, line.step))) is None or (name not in speed and not is_stored(value, found))
    }


def is_stored(value: float, found: float | None) -> bool:
    """Whether the store has a value: a trial that was removed and trained again elsewhere can have others at its steps."""
    if found is None or math.isnan(value):
        return found is not None and math.isnan(found)
    largest = sys.float_info.max  # what MLflow's databases keep of infinity
    return found in (value, max(-largest, min(largest, value)))


def _flush(client: MlflowClient, run_id: str, metrics: list[Metric], lines: int) -> None:
    client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.lines", str(lines))])


def _pictures(client: MlflowClient, run: Run, folder: TrialFolder) -> None:
    """Upload all images of the lines that the run already counts."""
    for line in list(read_spool(folder.spool))[: int(run.data.tags.get("dsd.lines", 0))]:
        if line.kind == "images":
            _upload_images(client, run.info.run_id, folder, line, int(line.time * 1000))


def _upload_images(client: MlflowClient, run_id: str, folder: TrialFolder, line: SpoolLine, stamp: int) -> None:
    there = [Path(item.path).name for item in client.list_artifacts(run_id, "images")]
    for name in line.files:
        key, path = name.rsplit("-", 1)[0], folder.images / name
        marked = (f"{key}%step%{line.step}%", f"{key}+step+{line.step}+")
        if is_whole_picture(path) and not any(file.startswith(marked) for file in there):
            with contextlib.suppress(DamagedImage):  # a damaged image is not stored
                client.log_image(run_id, open_grid(path), key=key, step=line.step, timestamp=stamp, synchronous=True)


def _evaluations(client: MlflowClient, run: Run, folder: TrialFolder, reupload: bool) -> None:
    held = set() if reupload else set(filter(None, run.data.tags.get("dsd.evaluations", "").split(",")))
    known, run_id = dict(run.data.metrics), run.info.run_id
    last, stamp = folder.status().step, int(time.time() * 1000)
    for key, content in folder.evaluations().items():
        single = {k: v for k, v in content.metrics.items() if not k.startswith(OVER_TRAINING)}
        if key in held and all(is_stored(v, known.get(k)) for k, v in single.items()):
            continue
        picture = folder.images / f"evaluation-{key}.png"
        if is_whole_picture(picture):
            client.log_artifact(run_id, str(picture), "final")
        client.log_dict(run_id, content.model_dump(), f"evaluations/{key}.json")
        held.add(key)
        at = content.settings.get("checkpoint")
        step = at if isinstance(at, int) else last  # kept checkpoints: one curve under one name
        # Evaluations share reference values.
        fresh = {k: v for k, v in content.metrics.items() if k not in single or not is_stored(v, known.get(k))}
        metrics = [Metric(k, v, stamp, last if k in single else step) for k, v in fresh.items()]
        known |= fresh
        client.log_batch(run_id, metrics=metrics, tags=[RunTag("dsd.evaluations", ",".join(sorted(held)))])


def _data_set(client: MlflowClient, run: Run, folder: TrialFolder) -> None:
    """Log the dataset as an input of the run, with its digest."""
    description = folder.description()
    if description is None or (run.inputs is not None and run.inputs.dataset_inputs):
        return
    data, (kind, source) = description.data, source_of(description.trial.data)
    profile = {"num_rows": data.train, "num_holdout": data.holdout, "num_classes": data.classes}
    found = Dataset(data.name, data.fingerprint[:16], kind, json.dumps(source), profile=json.dumps(profile))
    client.log_inputs(run.info.run_id, [DatasetInput(found, [InputTag("mlflow.data.context", "training")])])


def source_of(data: Data) -> tuple[str, dict[str, Any]]:
    """MLflow's source type and content for a dataset, from a trial's `data` fields."""
    if data.path is not None:
        return "local", {"uri": data.path}
    if data.hub is not None:
        return "hugging_face", {"path": data.hub}  # same format as MLflow's HuggingFaceDatasetSource
    return "code", {"tags": {"mlflow.source.name": "sklearn.datasets.load_digits"}}


def _settle(client: MlflowClient, run: Run, folder: TrialFolder, state: str, seen: str) -> None:
    """Record the state and the signature of the files."""
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as scratch:
        write_artifacts(folder, state, Path(scratch))
        client.log_artifacts(run_id, scratch)
    tags = status_tags(folder, state) | ({} if state == "running" else {"dsd.settled": seen})
    if "dsd.error" in run.data.tags and "dsd.error" not in tags:
        client.delete_tag(run_id, "dsd.error")  # the error is of an earlier attempt
    set_state(client, run_id, state, folder.status().updated)
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
