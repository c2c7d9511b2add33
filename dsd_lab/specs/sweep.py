"""A sweep: one YAML file, resolved to a list of fully resolved trials.

`base` < `variants` < `grid` < `seeds`: every variant is a set of overrides of the base, every grid
point of the variant, and every seed repeats all of them. `extends` inherits from another file,
`profiles` are named overrides of the file itself, and `--set` has the last word.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from dsd_lab.errors import BadInput
from dsd_lab.specs.complaints import complaint, did_you_mean
from dsd_lab.specs.document import Document, KeyPath, parse_scalar, read_document
from dsd_lab.specs.fields import Generation, Section, Trial
from dsd_lab.specs.identity import canonical_fields, trial_id

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_EXTENDS, MAX_TRIALS = 20, 10_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ReportSettings(Section):
    """Thresholds of the collapse verdict and what the report shows."""

    control: str | None = "control"
    """Variant that the others are judged against, seed by seed; null judges against fixed bounds."""
    runaway: float = Field(5.0, gt=1, le=1e6)
    """scale-runaway: latent std above this multiple of the control's."""
    shrunk: float = Field(0.2, gt=0, lt=1)
    """shrunk: latent std below this fraction of the control's."""
    capacity: float = Field(0.25, gt=0, lt=1)
    """shrunk: capacity in bits below this fraction of the control's."""
    rank: float = Field(0.5, gt=0, lt=1)
    """rank-collapsed: effective rank (token or image) below this fraction of the control's."""
    runaway_std: float = Field(10.0, gt=0, le=1e9)
    """Without a control: scale-runaway above this std."""
    shrunk_std: float = Field(0.1, gt=0, le=1e9)
    """Without a control: shrunk below this std."""
    rank_bound: float = Field(0.25, gt=0, lt=1)
    """Without a control: rank-collapsed below this fraction of the rank's bound."""
    probes: int = Field(3, ge=1, le=1000)
    """A verdict is on the median of this many last probes."""


class Sweep(Section):
    """The keys of a spec file. `base` and `variants` hold the fields of a trial."""

    schema_version: Literal[1] = Field(1, alias="schema")
    """Version of this format."""
    name: str = Field(pattern=NAME)
    """Name of the sweep, of its folder and of its MLflow experiment: lower case, digits, `.`, `_`, `-`."""
    why: str = ""
    """The question that the sweep answers; the report opens with it."""
    base: dict[str, Any] = {}
    """Fields of every trial."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """Named overrides of the base. A variant may have a `why` of its own."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Axes: key path -> values. Every variant is run at every point."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Seeds; every variant is run with each, and variants are compared seed by seed."""
    profile: str | None = None
    """The profile that is used where `--profile` names none."""
    profiles: dict[str, dict[str, Any]] = {}
    """Named overrides of this file's own keys."""
    evaluate: list[Generation] = []
    """Evaluations of every finished trial. Adding one retrains nothing."""
    report: ReportSettings = ReportSettings()
    """Thresholds and layout of the report."""

    @field_validator("variants", "profiles")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.match(NAME, name):
                raise ValueError(
                    f"the name {name!r} must be lower-case letters, digits, '.', '_' or '-', at most 64 of them"
                )
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError(f"seeds are repeated in {value}; each seed is one trial")
        return value


@dataclass(frozen=True)
class PlannedTrial:
    """One fully resolved trial: what is run, and what it is called in the sweep."""

    id: str
    variant: str
    seed: int
    fields: Trial
    point: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`variant key=value s<seed>`: what tells the trial from the others of its sweep."""
        point = " ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in self.point.items())
        return " ".join(part for part in (self.variant, point, f"s{self.seed}") if part)


@dataclass(frozen=True)
class Plan:
    """A resolved sweep."""

    spec: Sweep
    path: Path
    profile: str | None
    trials: list[PlannedTrial]

    @property
    def key(self) -> str:
        """Name of the sweep's folder: `name` or `name--profile`."""
        return f"{self.spec.name}--{self.profile}" if self.profile else self.spec.name

    def only(self, conditions: list[str]) -> Plan:
        """The trials that meet every `variant=NAME` or `seed=N` condition.

        Raises:
            BadInput: a condition is malformed or selects nothing.
        """
        chosen = self.trials
        for condition in conditions:
            key, _, value = condition.partition("=")
            if key not in ("variant", "seed") or not value:
                raise BadInput(f"--only {condition}: write variant=NAME or seed=N")
            known = sorted({str(getattr(t, key)) for t in self.trials})
            wanted = value.split(",")
            for name in wanted:
                if name not in known:
                    raise BadInput(f"--only {condition}: no {key} {name!r} in this sweep{did_you_mean(name, known)}")
            chosen = [t for t in chosen if str(getattr(t, key)) in wanted]
        if not chosen:
            raise BadInput(f"--only {' '.join(conditions)}: no trial meets all of these")
        return replace(self, trials=chosen)


def load_sweep(path: Path, profile: str | None = None, sets: list[str] | None = None) -> Plan:
    """Read, inherit, override, validate and resolve a spec.

    Args:
        path: the YAML file, or `-` for standard input.
        profile: name of a profile, instead of the spec's own choice.
        sets: `key.path=value` overrides. A path that starts with a section of a trial
            (`training.steps=100`) overrides every trial, after its variant; any other path
            edits the file (`seeds=[0]`, `variants.naive.optimiser.lr=1e-4`).

    Raises:
        BadInput: one line with the file, line, key and value, and what would be right.
    """
    document = _inherit(path, path.parent.resolve(), [])
    everywhere = Document({})
    for text in sets or []:
        key_path, value = _parse_set(text)
        mark = f"--set {text}"
        if key_path[0] in Trial.model_fields:
            everywhere = everywhere.with_value(key_path, value, mark)
        else:
            document = document.with_value(key_path, value, mark)
    chosen = profile or document.values.get("profile")
    if chosen is not None:
        profiles = document.values.get("profiles")
        known = list(profiles) if isinstance(profiles, dict) else []
        if chosen not in known:
            where = "--profile" if profile else document.where(("profile",))
            raise BadInput(f"{where}: no profile {chosen!r} in this spec{did_you_mean(str(chosen), known)}")
        over = document.part(("profiles", chosen))
        edited = document.merged(over.without("profiles", "profile"))
        for text in sets or []:  # --set has the last word, over the profile too
            key_path, value = _parse_set(text)
            if key_path[0] not in Trial.model_fields:
                edited = edited.with_value(key_path, value, f"--set {text}")
        document = edited
    spec = _validated(Sweep, document, ())
    trials = _resolve(spec, document, everywhere, path)
    return Plan(spec, path, chosen, trials)


def _parse_set(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise BadInput(f"--set {text}: write key.path=value, such as training.steps=200")
    return path, parse_scalar(value)


def _inherit(path: Path, root: Path, seen: list[Path]) -> Document:
    document = read_document(path)
    parent = document.values.get("extends")
    if parent is None:
        return document.without("extends")
    where = document.where(("extends",))
    if not isinstance(parent, str):
        raise BadInput(f"{where}: extends: {parent!r} is not the name of a spec file")
    target = (path.parent / parent).resolve()
    if not target.is_relative_to(root):
        raise BadInput(f"{where}: extends: {parent!r} leaves the folder of the spec; copy the parent into it")
    if target in [*seen, path.resolve()]:
        raise BadInput(f"{where}: extends: {parent!r} leads back to itself")
    if len(seen) >= MAX_EXTENDS:
        raise BadInput(f"{where}: extends: more than {MAX_EXTENDS} files deep")
    if not target.is_file():
        raise BadInput(f"{where}: extends: no such file {parent!r}")
    return _inherit(target, root, [*seen, path.resolve()]).merged(document.without("extends"))


def _validated(model: type[Any], document: Document, at: KeyPath) -> Any:
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        raise BadInput(complaint(error, model, document, at)) from None


def _resolve(spec: Sweep, document: Document, everywhere: Document, path: Path) -> list[PlannedTrial]:
    axes = list(spec.grid.items())
    points = [
        dict(zip([k for k, _ in axes], values, strict=True)) for values in itertools.product(*(v for _, v in axes))
    ]
    count = len(spec.variants) * len(points) * len(spec.seeds)
    if count > MAX_TRIALS:
        raise BadInput(
            f"{document.where(('grid',))}: the sweep has {count:,} trials; at most {MAX_TRIALS:,} are planned at once"
        )
    if spec.report.control is not None and "report" in document.values and spec.report.control not in spec.variants:
        known = list(spec.variants)
        raise BadInput(
            f"{document.where(('report', 'control'))}: report.control: no variant {spec.report.control!r}{did_you_mean(spec.report.control, known)}"
        )
    base, trials = document.part(("base",)), []
    for variant in spec.variants:
        over = document.part(("variants", variant)).without("why")
        for point in points:
            resolved = base.merged(over)
            for key, value in point.items():
                resolved = resolved.with_value(tuple(key.split(".")), value, document.where(("grid", key)))
            resolved = resolved.merged(everywhere)
            fields = _validated(Trial, resolved, ("variants", variant))
            fields = _absolute_data_path(fields, path)
            canonical_fields(fields)
            overrides = {**_flat(over.values), **point}
            trials += [
                PlannedTrial(trial_id(fields, seed), variant, seed, fields, point, overrides) for seed in spec.seeds
            ]
    return trials


def _absolute_data_path(fields: Trial, spec_path: Path) -> Trial:
    if fields.data.path is None:
        return fields
    folder = (spec_path.parent / Path(fields.data.path).expanduser()).resolve()
    data = fields.data.model_copy(update={"path": str(folder)})
    return fields.model_copy(update={"data": data})


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat
