"""Find a home folder's own experiments and runs in a store that other homes and programs may share.

The tag `dsd.home` identifies them. Runs of earlier versions lack the tag: in the home's own database they are ours,
elsewhere a trial's run is ours if its start time equals that of the trial's status to the millisecond. Since anybody
can write tags, a recorded run id takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from dsd_lab.home.home import Home
from dsd_lab.home.names import is_trial_id
from dsd_lab.store.own_runs import NEEDED, Record, invalid_tag, slot_of

_BATCH = 500
"""Experiments per search of runs."""


@dataclass(frozen=True)
class HomeRuns:
    """Finds a home's own runs.

    Args:
        client: of the store.
        home: the home folder.
        own: whether the store is the database in that folder.
        say: called with a line about something restored or recreated.
        record: of the runs that this home made.
    """

    client: MlflowClient
    home: Home
    own: bool
    say: Callable[[str], None]
    record: Record
    _invalid: dict[str, str] = field(default_factory=dict)
    """Runs that were skipped for invalid tags, and the reason."""
    _duplicates: dict[str, dict[str, None]] = field(default_factory=dict)
    """Skipped runs by what they claim to be: another run is recorded, or came first."""

    def is_ours(self, run: Run) -> bool:
        """Whether a run's tags say that it is this home's."""
        tags = run.data.tags
        if tags.get("dsd.kind") not in NEEDED:
            return False
        if "dsd.home" in tags or self.own:
            return bool(tags.get("dsd.home", self.home.id) == self.home.id)
        trial = tags.get("dsd.trial", "")
        started = self.home.trial(trial).status().started if is_trial_id(trial) else 0.0
        return bool(started > 0 and run.info.start_time == int(1000 * started))

    def is_recorded(self, run: Run) -> bool:
        """Whether the home's record lists this run."""
        return bool(self.record.get(slot_of(run.data.tags)) == run.info.run_id)

    def runs(self, condition: str, experiments: list[str] | None = None, deleted: bool = False) -> list[Run]:
        """This home's runs that match a condition, one per slot."""
        named = self.experiments() if experiments is None else experiments
        by_slot: dict[str, list[Run]] = {}
        for run in self._checked(self.is_ours, condition, named, deleted):
            by_slot.setdefault(slot_of(run.data.tags), []).append(run)
        return [own for slot, runs in by_slot.items() if (own := self._pick(slot, runs)) is not None]

    def of_any_home(self, trial: str) -> list[Run]:
        """Runs of a trial from any home and experiment."""
        everywhere = [str(e.experiment_id) for e in self._search(ViewType.ACTIVE_ONLY, None)]
        condition = f"tags.`dsd.kind` = 'trial' and tags.`dsd.trial` = '{trial}'"
        return self._checked(lambda run: True, condition, everywhere)

    def notices(self) -> list[str]:
        """A line per group of skipped runs."""
        lines = []
        if self._invalid:
            first, reason = next(iter(self._invalid.items()))
            lines.append(f"{len(self._invalid)} foreign runs of the store are skipped, first {first}: {reason}")
        for what, runs in self._duplicates.items():
            lines.append(f"{len(runs)} other runs of {what} in the store are skipped, first {next(iter(runs))}")
        return lines

    def _checked(
        self, wanted: Callable[[Run], bool], condition: str, named: list[str], deleted: bool = False
    ) -> list[Run]:
        """Search runs, and keep those with valid tags. Every search goes through this method."""
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        found = []
        for start in range(0, len(named), _BATCH):
            some, token = named[start : start + _BATCH], None
            while True:
                page = self.client.search_runs(some, condition, view, 1000, ["attributes.start_time ASC"], token)
                for run in filter(wanted, page):
                    if reason := invalid_tag(run):
                        self._invalid[run.info.run_id] = reason
                    else:
                        found.append(run)
                token = page.token
                if not token:
                    break
        return sorted(found, key=lambda run: run.info.start_time or 0)

    def _pick(self, slot: str, runs: list[Run]) -> Run | None:
        """The recorded run of several with one slot; the first if none is recorded or that run is deleted for good."""
        recorded = self.record.get(slot)
        own = next((run for run in runs if run.info.run_id == recorded), None)
        if own is None and (recorded is None or not self._exists(recorded)):
            own = runs[0]
        for run in runs:
            if run is not own:
                tags = run.data.tags
                what = f"trial {tags['dsd.trial']}" if "dsd.trial" in tags else f"sweep {tags['dsd.sweep']}"
                self._duplicates.setdefault(what, {})[run.info.run_id] = None
        return own

    def _exists(self, run_id: str) -> bool:
        """Whether the store has a run, deleted or not."""
        try:
            self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def experiments(self) -> list[str]:
        """Ids of the experiments that may hold runs of this home."""
        return [str(e.experiment_id) for e in self._experiments(ViewType.ACTIVE_ONLY)]

    def experiment(self, name: str, why: str, artifacts: str | None) -> str:
        """The experiment of a spec, whatever its present name; created where there is none.

        Args:
            name: of the spec.
            why: question of the spec; becomes the description.
            artifacts: URI of the folder for artifacts; None leaves it to the server.
        """
        own = [e for e in self._experiments(ViewType.ALL) if e.tags.get("dsd.experiment", e.name) == name]
        own = [e for e in own if self._is_own(e)]
        own.sort(key=lambda e: e.lifecycle_stage != "active")
        if not own:
            return self._create_experiment(name, why, artifacts)
        found = own[0]
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
            self.say(f"the experiment {found.name!r} was deleted in the store; it is restored")
        for key, value in (("dsd.home", self.home.id), ("dsd.experiment", name)):
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _create_experiment(self, name: str, why: str, artifacts: str | None) -> str:
        free = name
        if self.client.get_experiment_by_name(name) is not None:
            free = f"{name}-{self.home.id[:8]}"
            self.say(f"the experiment {name!r} of the store is foreign; this home's runs go to {free!r}")
        # This tag makes MLflow's pages open on training runs instead of traces.
        tags = {"mlflow.note.content": why, "mlflow.experimentKind": "custom_model_development"}
        tags |= {"dsd.home": self.home.id, "dsd.experiment": name}
        place = None if artifacts is None else f"{artifacts}/{free}"
        return str(self.client.create_experiment(free, place, tags))

    def _experiments(self, view: int) -> Iterator[Experiment]:
        """Experiments to search for this home's runs."""
        if self.own:
            yield from self._search(view, None)
            return
        yield from self._search(view, f"tags.`dsd.home` = '{self.home.id}'")
        for name in dict.fromkeys(manifest.name for manifest in self.home.manifests().values()):
            found = self.client.get_experiment_by_name(name)
            if found is None or "dsd.home" in found.tags:
                continue
            if view == ViewType.ALL or found.lifecycle_stage == "active":
                yield found

    def _search(self, view: int, condition: str | None) -> Iterator[Experiment]:
        token = None
        while True:
            page = self.client.search_experiments(view, filter_string=condition, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _is_own(self, experiment: Experiment) -> bool:
        """Whether an experiment is this home's: by its tag, or, without one, if any of its runs is."""
        if "dsd.home" in experiment.tags:
            return bool(experiment.tags["dsd.home"] == self.home.id)
        deleted = experiment.lifecycle_stage != "active"
        return bool(self.runs("tags.`dsd.kind` = 'trial'", [str(experiment.experiment_id)], deleted))
