"""Records of a sweep's folder: `manifest.json` (latest request) and `revisions.json` (all requests)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from dsd_lab.home.record_types import Canonical, Command, Count, Date, Key, Record, Step, Text, TrialId
from dsd_lab.specs.sweep import MAX_TRIALS, NAME, Sweep, trial_name

EvaluationId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class Entry(Record):
    """A trial of a manifest."""

    id: TrialId
    name: Text
    variant: Annotated[str, Field(pattern=NAME)]
    point: dict[str, Any]
    seed: Count
    size: Text
    steps: Step
    overrides: dict[str, Any]
    canonical: Canonical
    has_denoiser: bool

    def refuse_inconsistent(self) -> None:
        wanted = trial_name(self.variant, self.point, self.seed)
        if self.name != wanted:
            raise ValueError(f"name: {self.name!r} differs from the name of its variant, point and seed, {wanted!r}")
        if self.canonical.get("training", {}).get("steps") != self.steps:
            raise ValueError(f"steps: {self.steps} differs from its fields")


class ImportedSweep(Record):
    """Time of an import."""

    at: Date


class Manifest(Record):
    """`manifest.json` of a sweep: the latest request."""

    NEEDED = ("why", "profile", "evaluations")
    format: int = 1
    key: Key
    schema_version: Count = 1
    """Version of the trial ids."""
    name: Annotated[str, Field(pattern=NAME)]
    profile: Annotated[str, Field(pattern=NAME)] | None = None
    why: Text = ""
    run_at: Date
    spec_path: Text = ""
    command: Command | None = None
    set: list[Text] = []
    """`KEY=VALUE` of every `--set`."""
    spec: dict[str, Any]
    """The resolved spec."""
    evaluations: dict[EvaluationId, dict[str, Any]] = {}
    trials: list[Entry]
    kept: list[TrialId] = []
    """Trials that were trained singly, not as part of the sweep."""
    imported: ImportedSweep | None = None

    @model_validator(mode="after")
    def _of_its_key(self) -> Manifest:
        if self.key not in (self.name, f"{self.name}--{self.profile}"):
            raise ValueError(f"name: {self.name!r} does not match the key {self.key}")
        return self

    def refuse_inconsistent(self) -> None:
        wanted = f"{self.name}--{self.profile}" if self.profile else self.name
        if self.key != wanted or Sweep.model_validate(self.spec).name != self.name:
            raise ValueError(f"key, name, profile and spec do not agree: {self.key!r} is not {wanted!r}")
        if len(self.trials) > MAX_TRIALS:
            raise ValueError(f"trials: {len(self.trials):,}, more than {MAX_TRIALS:,}")
        for entry in self.trials:
            if entry.variant not in self.spec["variants"]:
                raise ValueError(f"trials: {entry.name!r}: the spec has no variant {entry.variant!r}")
        names = [entry.name for entry in self.trials]
        if len(names) > len({*names}):
            raise ValueError(f"trials: {max(names, key=names.count)!r} occurs twice")

    @property
    def ids(self) -> list[str]:
        """Ids of the sweep's trials in order."""
        return [entry.id for entry in self.trials]

    @property
    def named(self) -> frozenset[str]:
        """Ids of the sweep's trials and of those trained singly."""
        return frozenset((*self.ids, *self.kept))


class Settings(Record):
    """Requested settings of a sweep's revision."""

    profile: Text | None = None
    spec: dict[str, Any]


class Asked(Record):
    """Time and command line of a request."""

    at: Date
    command: Command | None = None


class Revision(Record):
    """One version of a sweep's settings."""

    number: Count
    changes: Text | None = None
    settings: Settings
    trials: list[TrialId]
    runs: list[Asked]


class Revisions(Record):
    """`revisions.json` of a sweep."""

    format: int = 1
    revisions: list[Revision]
