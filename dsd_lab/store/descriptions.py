"""Parameters, views and descriptions of a sweep on MLflow's pages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param, Run

from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.specs.metrics import fids
from dsd_lab.store.artifacts import sweep_parameters
from dsd_lab.store.views import MAX_DISTANCES, views_of

NOTE, VERDICT = "mlflow.note.content", "dsd.verdict"
"""Tags of a run: its description, and the verdict on its trial."""
_CHANGED = "dsd.changed_parameters"
_MAX_NOTE = 4900
"""Characters that every kind of store accepts."""
_BATCH = 100
"""Maximum of parameters per call in MLflow."""


def log_parameters(client: MlflowClient, run_id: str, parameters: list[Param]) -> None:
    """Add parameters to a run. Existing parameters cannot be changed."""
    for start in range(0, len(parameters), _BATCH):
        client.log_batch(run_id, params=parameters[start : start + _BATCH])


def describe_sweep(client: MlflowClient, parent: Run, manifest: Manifest) -> None:
    """Add a sweep's parameters to its parent run. MLflow cannot change them, so a tag lists later changes."""
    wanted = {k: str(v)[:500] for k, v in sweep_parameters(manifest).items()}
    run_id, there = parent.info.run_id, parent.data
    log_parameters(client, run_id, [Param(k, v) for k, v in wanted.items() if k not in there.params])
    changed = {k: v for k, v in wanted.items() if there.params.get(k, v) != v}
    changes = "; ".join(f"{k}: {there.params[k]}, now {v}" for k, v in changed.items())[:_MAX_NOTE]
    if changes != there.tags.get(_CHANGED, ""):
        client.set_tag(run_id, _CHANGED, changes)


def offer_views(client: MlflowClient, home: Home, experiment: str, manifest: Manifest) -> None:
    """Add views of a sweep's trials to MLflow's pages, with the FIDs measured so far."""
    first = {entry.variant: entry for entry in reversed(manifest.trials)}
    measured = (e for t in first.values() for e in home.trial(t.id).evaluations().values())
    distances = fids({name for e in measured for name in e.metrics})
    there = client.get_experiment(experiment).tags
    for key, value in views_of(manifest, home.id, distances[:MAX_DISTANCES]).items():
        if there.get(key) != value:
            client.set_experiment_tag(experiment, key, value)


def attach_report(client: MlflowClient, parent: str, folder: Path, key: str, place: str, note: str) -> None:
    """Add a report's pages, tables and figures to a sweep's parent run, and its summary to the run's description."""
    for name in ("report.html", "report.md"):
        client.log_artifact(parent, str(folder / name), place)
    part = folder / key if (folder / key).is_dir() else folder  # a report of several sweeps has a folder per sweep
    for path in [*part.glob("tables/*.csv"), *part.glob("figures/*.png")]:
        client.log_artifact(parent, str(path), f"{place}/{path.parent.name}")
    if len(note) > _MAX_NOTE:
        note = note[:_MAX_NOTE].rpartition("\n")[0] + f"\n\nThe rest is in the artifact {place}/report.md."
    client.set_tag(parent, NOTE, note)


def record_verdicts(client: MlflowClient, runs: Iterable[Run], verdicts: dict[str, str | None]) -> None:
    """Tag runs with the verdicts on their trials. Runs without a verdict lose the tag."""
    for run in runs:
        verdict, before = verdicts.get(run.data.tags["dsd.trial"]), run.data.tags.get(VERDICT)
        if verdict is not None and verdict != before:
            client.set_tag(run.info.run_id, VERDICT, verdict)
        elif verdict is None and before is not None:
            client.delete_tag(run.info.run_id, VERDICT)
