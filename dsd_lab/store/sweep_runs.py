"""Write a sweep to its runs: the parent, a run per trial, and pointers to trials that other sweeps trained."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry, Manifest
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.store.artifacts import differing, flat
from dsd_lab.store.descriptions import NOTE, VERDICT, describe_sweep, log_parameters, offer_views
from dsd_lab.store.own_runs import slot_of
from dsd_lab.store.reading import has_lost_artifacts
from dsd_lab.store.replay import BATCH, is_stored, set_state, sync_run
from dsd_lab.store.shared import HomeRuns
from dsd_lab.store.system_metrics import read_samples

_OWN_TAGS = {VERDICT, *(f"dsd.{name}" for name in ("kind", "sweep", "home", "variant", "size", "seed"))}
"""Tags of a pointer that are not those of its target."""


@dataclass(frozen=True)
class SweepRuns:
    """A sweep in the store."""

    key: str
    experiment: str
    parent: str
    parent_run: Run | None
    """The parent as found in the first pass; None in later passes."""
    differing: list[str]
    whys: dict[str, str]
    """`why` of each variant."""
    imported: bool
    trials: dict[tuple[str, str, str | None], Run]
    """Runs by trial, code and import as found in the first pass, by a single search."""
    pointers: dict[str, Run]
    """This sweep's pointers as found in the first pass, by target run."""
    everywhere: list[str]
    """Experiments that may hold runs of this home."""


def imported_with(folder: TrialFolder) -> str | None:
    """The sweep with which a trial was imported; None where it was trained here."""
    mark = folder.imported()
    return None if mark is None else mark.sweep


def _mark(imported: str | None) -> dict[str, str]:
    return {} if imported is None else {"dsd.imported": imported}


def _axes(entry: Entry) -> dict[str, str | int]:
    return {"variant": entry.variant, "size": entry.size, "seed": entry.seed}


def _has(run: Run, state: str, seen: str) -> bool:
    """Whether a run holds a trial in this state, with files of this signature."""
    return (run.data.tags.get("dsd.state"), run.data.tags.get("dsd.settled")) == (state, seen)


def _may_change(sweep: SweepRuns, run: Run) -> bool:
    """Whether a sweep may change a run: an imported sweep changes only its own runs."""
    tags = run.data.tags
    return not sweep.imported or tags["dsd.kind"] == "pointer" or tags.get("dsd.imported") == sweep.key


@dataclass
class Writer:
    """Writes sweeps to a store and caches what it knows of it.

    Args:
        client: of the store.
        home: whose trials are stored.
        ours: finds the home's runs.
        artifacts: URI of the folder for artifacts; None leaves it to the server.
    """

    client: MlflowClient
    home: Home
    ours: HomeRuns
    artifacts: str | None
    verified_runs: set[str] = field(default_factory=set)
    """Runs whose tag `dsd.lines` is verified."""
    current: list[Run] | None = None
    """Runs of trials with nothing to write in the last pass, so that a report need not search again."""
    _runs: dict[str, str] = field(default_factory=dict)
    """Run ids by search."""
    _seen: dict[str, str] = field(default_factory=dict)
    """Signature of each trial's files at the last pass."""

    def forget(self) -> None:
        """Drop the caches after an error of the store."""
        for memory in (self._runs, self._seen, self.verified_runs):
            memory.clear()

    def sweep(self, manifest: Manifest) -> SweepRuns:
        """The sweep's experiment and parent run; created or restored where missing."""
        key, name, why = manifest.key, manifest.name, manifest.why
        experiment = self.ours.experiment(name, why, self.artifacts)
        imported = None if manifest.imported is None else key
        parent = self._find([experiment], "sweep", f"tags.`dsd.sweep` = '{key}'", imported)
        if parent is None:
            tags = {"dsd.kind": "sweep", "dsd.sweep": key, NOTE: why} | _mark(imported)
            tags |= {"dsd.command": manifest.command[:5000]} if manifest.command else {}
            parent = self._create(experiment, key, int(1000 * manifest.run_at), tags)
        spec = json.dumps(manifest.spec, indent=1)
        if self._seen.get(f"{key} spec") != spec:
            self.client.log_text(parent, spec, "spec.json")
            self._seen[f"{key} spec"] = spec
        trials: dict[tuple[str, str, str | None], Run] = {}
        pointers: dict[str, Run] = {}
        everywhere = self.ours.experiments()
        parent_run: Run | None = None
        if f"{key} state" not in self._seen:
            parent_run = self.client.get_run(parent)
            describe_sweep(self.client, parent_run, manifest)
            self.current = self.ours.runs("tags.`dsd.kind` = 'trial'", everywhere)
            for run in self.current:
                tags = run.data.tags
                trials[tags["dsd.trial"], tags["dsd.code"], tags.get("dsd.imported")] = run
            condition = f"tags.`dsd.kind` = 'pointer' and tags.`dsd.sweep` = '{key}'"
            pointers = {run.data.tags["dsd.points_to"]: run for run in self.ours.runs(condition, everywhere)}
        fields, variants = differing(manifest.trials), manifest.spec["variants"]
        whys = {name: str(over.get("why") or "") for name, over in variants.items() if isinstance(over, dict)}
        return SweepRuns(
            key, experiment, parent, parent_run, fields, whys, imported is not None, trials, pointers, everywhere
        )

    def _find(self, experiments: list[str], kind: str, condition: str, imported: str | None = None) -> str | None:
        slot = f"{kind} {imported} {condition}"
        if slot not in self._runs:
            wanted = f"tags.`dsd.kind` = '{kind}' and {condition}"
            for deleted in (False, True):
                runs = self.ours.runs(wanted, experiments, deleted)
                if kind != "pointer":  # a pointer copies its target's tags
                    runs = [run for run in runs if run.data.tags.get("dsd.imported") == imported]
                if runs:
                    break
            else:
                return None
            if deleted:
                self.client.restore_run(runs[0].info.run_id)
                self.ours.say(f"the run {runs[0].info.run_name!r} was deleted in the store; it is restored")
            self.ours.record.add(slot_of(runs[0].data.tags), runs[0].info.run_id)
            self._runs[slot] = runs[0].info.run_id
        return self._runs[slot]

    def trial(self, sweep: SweepRuns, entry: Entry) -> int:
        """Bring a trial's run up to date. Returns the number of new spool lines."""
        folder = self.home.trial(entry.id)
        state, status = folder.state(), folder.status()
        size = folder.spool.stat().st_size if folder.spool.exists() else 0
        seen = f"{state} {status.attempt} {size} {len(folder.evaluations())}"
        slot = f"{sweep.key} {entry.name}"
        if state == "pending" or self._seen.get(slot) == seen:
            return 0
        code, imported, new = str(status.code), imported_with(folder), 0
        run = sweep.trials.get((entry.id, code, imported))
        if run is not None and self._is_settled(sweep, entry, state, run, seen):
            self.ours.record.add(slot_of(run.data.tags), run.info.run_id)
        else:
            self.current = None
            run = self.client.get_run(self._trial_run(sweep, entry, code, imported))
            self._parameters(sweep, entry, run)
            if self._is_orphaned(sweep, run):
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", sweep.parent)
            lost = has_lost_artifacts(run, folder)
            if lost:
                self.ours.say(f"the artifacts of {entry.name!r} are missing in the store; they are written again")
            if not _has(run, state, seen) or lost:
                new = sync_run(self.client, run, folder, state, seen, self.verified_runs, lost)
            if run.data.tags["dsd.sweep"] != sweep.key and state in ENDED:
                self._pointer(sweep, entry, run.info.run_id)
        self._seen[slot] = seen
        return new

    def _is_settled(self, sweep: SweepRuns, entry: Entry, state: str, run: Run, seen: str) -> bool:
        """Whether the first pass showed that a trial's run is complete."""
        if not _has(run, state, seen) or self._missing_parameters(sweep, entry, run):
            return False
        if self._is_orphaned(sweep, run) or has_lost_artifacts(run, self.home.trial(entry.id)):
            return False
        if run.data.tags["dsd.sweep"] == sweep.key or state not in ENDED:
            return True
        pointer = sweep.pointers.get(run.info.run_id)
        return (
            pointer is not None
            and pointer.info.status == "FINISHED"
            and _has(pointer, state, seen)
            and not self._missing_parameters(sweep, entry, pointer)
        )

    def _is_orphaned(self, sweep: SweepRuns, run: Run) -> bool:
        """Whether the parent of a run of this sweep was deleted for good."""
        tags = run.data.tags
        return (
            _may_change(sweep, run)
            and tags["dsd.sweep"] == sweep.key
            and tags.get("mlflow.parentRunId") != sweep.parent
        )

    def _trial_run(self, sweep: SweepRuns, entry: Entry, code: str, imported: str | None) -> str:
        """The run of a trial in the experiment where this code first trained it; created where there is none."""
        condition = f"tags.`dsd.trial` = '{entry.id}' and tags.`dsd.code` = '{code}'"
        found = self._find(sweep.everywhere, "trial", condition, imported)
        if found is None:
            found = self._create_child(sweep, entry, "trial", {"dsd.code": code} | _mark(imported))
            self.verified_runs.add(found)
        return found

    def _create_child(self, sweep: SweepRuns, entry: Entry, kind: str, tags: dict[str, str]) -> str:
        tags = tags | {"mlflow.parentRunId": sweep.parent, "dsd.kind": kind, "dsd.sweep": sweep.key}
        tags |= {"dsd.trial": entry.id} | {f"dsd.{k}": str(v) for k, v in _axes(entry).items()}
        started = int(1000 * (self.home.trial(entry.id).status().started or time.time()))
        return self._create(sweep.experiment, entry.name, started, tags)

    def _create(self, experiment: str, name: str, started: int, tags: dict[str, str]) -> str:
        run = self.client.create_run(experiment, started, tags | {"dsd.home": self.home.id}, name)
        self.ours.record.add(slot_of(tags), run.info.run_id)
        return str(run.info.run_id)

    def _parameters(self, sweep: SweepRuns, entry: Entry, run: Run) -> None:
        """Add missing parameters: more fields differ as a sweep grows."""
        missing = self._missing_parameters(sweep, entry, run)
        if missing:
            log_parameters(self.client, run.info.run_id, missing)
            why = sweep.whys.get(entry.variant)
            if why and NOTE not in run.data.tags:
                self.client.set_tag(run.info.run_id, NOTE, why)

    def _missing_parameters(self, sweep: SweepRuns, entry: Entry, run: Run) -> list[Param]:
        if not _may_change(sweep, run):
            return []
        fields = flat(entry.canonical)
        wanted = _axes(entry) | dict.fromkeys(sweep.differing, "-") | fields
        return [Param(k, str(v)[:500]) for k, v in wanted.items() if k not in run.data.params]

    def machine(self, sweep: SweepRuns) -> None:
        """Log the machine's load during the sweep under MLflow's names, with the sample's number as step."""
        samples = read_samples(self.home.sweep_folder(sweep.key))
        slot = f"{sweep.key} machine"
        if slot not in self._seen:
            run = sweep.parent_run or self.client.get_run(sweep.parent)
            names = [name for name in run.data.metrics if name.startswith("system/")]
            held = [m.step for name in names for m in self.client.get_metric_history(sweep.parent, name)]
            self._seen[slot] = str(max(held, default=-1) + 1)
        for step, sample in list(enumerate(samples))[int(self._seen[slot]) :]:
            stamp = int(1000 * sample["time"])
            metrics = [Metric(name, value, stamp, step) for name, value in sample["metrics"].items()]
            self.client.log_batch(sweep.parent, metrics=metrics)
            self._seen[slot] = str(step + 1)

    def settle(self, sweep: SweepRuns, manifest: Manifest) -> None:
        """Set the parent run's state from its trials."""
        trials = [self.home.trial(t.id) for t in manifest.trials]
        order, states = ("running", "interrupted", "pending", "failed"), {t.state() for t in trials}
        state = next((s for s in order if s in states), "done")
        if self._seen.get(f"{sweep.key} state") != state:
            offer_views(self.client, self.home, sweep.experiment, manifest)
            # End time: that of the last trial. All trials may have been trained before the run began.
            ended = max([manifest.run_at, *(t.status().updated for t in trials)])
            set_state(self.client, sweep.parent, state, ended)
            self._seen[f"{sweep.key} state"] = state

    def _pointer(self, sweep: SweepRuns, entry: Entry, target: str) -> None:
        """A short child run for a trial that another sweep trained: final metrics and the id of the target run."""
        trial = f"tags.`dsd.sweep` = '{sweep.key}' and tags.`dsd.trial` = '{entry.id}'"
        pointer = self._find([sweep.experiment], "pointer", f"{trial} and tags.`dsd.points_to` = '{target}'")
        if pointer is None:
            pointer = self._create_child(sweep, entry, "pointer", {"dsd.points_to": target})
        run, found = self.client.get_run(pointer), self.client.get_run(target)
        self._parameters(sweep, entry, run)
        step, stamp = int(found.data.tags.get("dsd.step", 0)), int(time.time() * 1000)
        held = run.data.metrics
        missing = [Metric(k, v, stamp, step) for k, v in found.data.metrics.items() if not is_stored(v, held.get(k))]
        tags = [RunTag(k, v) for k, v in found.data.tags.items() if k.startswith("dsd.") and k not in _OWN_TAGS]
        self.client.log_batch(pointer, metrics=missing[:BATCH], tags=tags)
        if run.info.status != "FINISHED":
            set_state(self.client, pointer, "done", self.home.trial(entry.id).status().updated)
