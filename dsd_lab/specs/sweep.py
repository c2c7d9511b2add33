"""A sweep: one YAML file, resolved to a list of trials.

A variant overrides fields of `base`, a grid point overrides fields of the variant, and each combination is repeated for
every seed. `extends` inherits from another file, `profiles` are named overrides of the file, and `--set` is applied
last.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from dsd_lab.errors import BadInput
from dsd_lab.specs.inheritance import parse_set
from dsd_lab.specs.messages import complaints, did_you_mean, summary
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Generation, Section, Trial
from dsd_lab.specs.yaml_document import Document

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_TRIALS = 10_000
Name = Annotated[str, Field(pattern=NAME)]
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Sweep(Section):
    """The keys of a spec file. `base` and `variants` hold the fields of a trial."""

    schema_version: Literal[1] = Field(1, alias="schema")
    """Version of this format."""
    name: Name
    """Name of the sweep, of its folder and of its MLflow experiment: lower case, digits, `.`, `_`, `-`."""
    why: str = ""
    """The question that the sweep answers; the report opens with it."""
    data_from: str = ""
    """Where to get the images if `data.path` does not exist: an address, and what to set for another layout."""
    requires: list[PluginName] = []
    """Plug-ins that define parts named in the spec. Each must be given with `--plugin`, or installed."""
    base: dict[str, Any] = {}
    """Fields of every trial."""
    variants: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Named overrides of the base. A variant may have its own `why`, and a `steps_factor` that multiplies its `training.steps`."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Axes: key path -> values. Every variant is run at every grid point."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Every variant is run with every seed; variants are compared seed by seed."""
    profile: str | None = None
    """Default profile, used without `--profile`."""
    profiles: dict[Name, dict[str, Any]] = {}
    """Named overrides of this file's keys."""
    evaluate: list[Generation] = []
    """Evaluations of every finished trial. A new one does not retrain anything."""
    report: ReportSettings = ReportSettings()
    """Thresholds and layout of the report."""

    @field_validator("schema_version", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        if isinstance(value, int) and value > 1:
            raise ValueError(f"{value} is a newer format than this program reads, which is 1; update dsd-lab")
        return value

    @field_validator("name")
    @classmethod
    def _no_separator(cls, value: str) -> str:
        if "--" in value:
            raise ValueError(f"{value!r} contains '--', which separates a sweep's name from its profile; use '-'")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        repeated = [seed for seed, times in Counter(value).items() if times > 1]
        if repeated:
            raise ValueError(f"{repeated[0]} is repeated; each seed is one trial")
        return value


@dataclass(frozen=True)
class PlannedTrial:
    """One resolved trial: its fields, and its place in the sweep."""

    id: str
    variant: str
    seed: int
    fields: Trial
    point: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`variant key=value s<seed>`: unique within the sweep."""
        return trial_name(self.variant, self.point, self.seed)

    def as_json(self) -> dict[str, Any]:
        """The trial for another process, which reads it with `from_json`."""
        own = {name: getattr(self, name) for name in ("id", "variant", "seed", "point", "overrides")}
        return own | {"fields": self.fields.model_dump()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PlannedTrial:
        """The trial of `as_json`; its plug-ins must be loaded."""
        return cls(**content | {"fields": Trial.model_validate(content["fields"])})


def trial_name(variant: str, point: dict[str, Any], seed: int) -> str:
    """`variant key=value s<seed>`, keys without their section."""
    values = " ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items())
    return " ".join(part for part in (variant, values, f"s{seed}") if part)


@dataclass(frozen=True)
class Plan:
    """A resolved sweep."""

    spec: Sweep
    path: Path
    profile: str | None
    trials: list[PlannedTrial]
    everywhere: dict[str, Any] = field(default_factory=dict)
    """Fields that `--set` overrides in every trial."""
    sets: tuple[str, ...] = ()
    """The overrides as typed."""

    @property
    def key(self) -> str:
        """Name of the sweep's folder: `name` or `name--profile`."""
        return f"{self.spec.name}--{self.profile}" if self.profile else self.spec.name

    def only(self, conditions: list[str]) -> Plan:
        """The trials that match conditions `variant=NAME,...` and `seed=N,...`; conditions on one key are united.

        Raises:
            BadInput: a condition is malformed or selects no trial.
        """
        wanted: dict[str, set[str]] = {}
        for condition in conditions:
            key, _, value = condition.partition("=")
            if key not in ("variant", "seed") or not value:
                raise BadInput(f"--only {condition}: write variant=NAME or seed=N")
            known = sorted({str(getattr(t, key)) for t in self.trials})
            for name in value.split(","):
                if name not in known:
                    raise BadInput(f"--only {condition}: no {key} {name!r} in this sweep{did_you_mean(name, known)}")
                wanted.setdefault(key, set()).add(name)
        chosen = [t for t in self.trials if all(str(getattr(t, key)) in names for key, names in wanted.items())]
        if not chosen:
            raise BadInput(f"--only {' '.join(conditions)}: no trial meets all of these")
        return replace(self, trials=chosen)


def read_fields(values: dict[str, Any], sets: list[str]) -> Trial:
    """The fields of a trial without a spec file, from values and `section.key=value` overrides.

    Raises:
        BadInput: a value is not valid; the message names the key.
    """
    document = Document(values)
    for text in sets:
        document = document.with_value(*parse_set(text, list(Trial.model_fields)))
    try:
        return Trial.model_validate(document.values)
    except ValidationError as error:
        raise BadInput(summary({line: [] for line in complaints(error, Trial, document)}, [])) from None
