"""A sweep: one YAML file, resolved to a list of fully resolved trials.

`base` < `variants` < `grid` < `seeds`: every variant is a set of overrides of the base, every grid
point of the variant, and every seed repeats all of them. `extends` inherits from another file,
`profiles` are named overrides of the file itself, and `--set` has the last word.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from dsd_lab.errors import BadInput
from dsd_lab.specs.auxiliary import named_paths
from dsd_lab.specs.complaints import complaints, did_you_mean, summary
from dsd_lab.specs.consistency import check_averages, check_report, check_sources
from dsd_lab.specs.document import Document, one_line
from dsd_lab.specs.evaluations import expanded, with_files
from dsd_lab.specs.fields import Generation, Section, Trial
from dsd_lab.specs.identity import trial_ids
from dsd_lab.specs.layers import edited, parse_set, read_with_parents, resolved_path

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_TRIALS = 10_000
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Tuning(Section):
    """Report every variant at its own best value of one grid axis."""

    axis: str = "optimiser.lr"
    """The axis of `grid` that is tuned."""
    by: str = "fid"
    """First part of the name of the metric that chooses, such as `fid`, `kid`, `label_accuracy`; variants without it are chosen by reconstruction loss."""
    higher_is_better: bool = False
    """Whether that metric is better when higher."""


class ReportSettings(Section):
    """Thresholds of the collapse verdict and what the report shows."""

    control: str | None = "control"
    """Variant that the others are judged against, seed by seed; null judges against fixed bounds."""
    reference: str | None = None
    """Variant that the others are compared with, seed by seed; null takes `dsd`, else the control, else the first."""
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
    tuned: Tuning | None = None
    """Where set, a seed is reported at the axis value that the other seeds rank best."""


class Sweep(Section):
    """The keys of a spec file. `base` and `variants` hold the fields of a trial."""

    schema_version: Literal[1] = Field(1, alias="schema")
    """Version of this format."""
    name: Name
    """Name of the sweep, of its folder and of its MLflow experiment: lower case, digits, `.`, `_`, `-`."""
    why: str = ""
    """The question that the sweep answers; the report opens with it."""
    base: dict[str, Any] = {}
    """Fields of every trial."""
    variants: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Named overrides of the base. A variant may have a `why` of its own."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Axes: key path -> values. Every variant is run at every point."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Seeds; every variant is run with each, and variants are compared seed by seed."""
    profile: str | None = None
    """The profile that is used where `--profile` names none."""
    profiles: dict[Name, dict[str, Any]] = {}
    """Named overrides of this file's own keys."""
    evaluate: list[Generation] = []
    """Evaluations of every finished trial. Adding one retrains nothing."""
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
            raise ValueError(f"{value!r} holds '--', which stands between a sweep's name and its profile; use '-'")
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
        """The trials of the named variants and seeds: `variant=NAME,...` or `seed=N,...`, repeated conditions on one key adding up.

        Raises:
            BadInput: a condition is malformed or selects nothing.
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


def load_sweep(path: Path, profile: str | None = None, sets: list[str] | None = None) -> Plan:
    """Read, inherit, override, validate and resolve a spec.

    Args:
        path: the YAML file, or `-` for standard input.
        profile: name of a profile, instead of the spec's own choice.
        sets: `key.path=value` overrides. A path that starts with a section of a trial
            (`training.steps=100`) overrides every trial, after its variant and the grid, of which
            it takes that axis away; any other path edits the file, after the profile (`seeds=[0]`,
            `variants.naive.optimiser.lr=1e-4`, `grid.training.steps=[10, 20]`).

    Raises:
        BadInput: one line with the file, line, key and value, and what would be right.
    """
    document = read_with_parents(path)
    everywhere, edits = Document({}), []
    known_keys = [*Trial.model_fields, *(f.alias or name for name, f in Sweep.model_fields.items())]
    for text in sets or []:
        key_path, value, mark = parse_set(text, known_keys)
        if key_path[0] in Trial.model_fields:
            everywhere = everywhere.with_value(key_path, value, mark)
        elif key_path[0] in ("profile", "profiles"):
            document = edited(document, key_path, value, mark)
        else:
            edits.append((key_path, value, mark))
    chosen = profile or document.values.get("profile")
    if chosen is not None:
        profiles = document.values.get("profiles")
        known = list(profiles) if isinstance(profiles, dict) else []
        if chosen not in known:
            where = f"--profile {one_line(chosen)}" if profile else f"{document.where(('profile',))}: profile"
            meant = did_you_mean(str(chosen), known) or "; it has none"
            raise BadInput(f"{where}: no profile {one_line(str(chosen))!r} in this spec{meant}")
        document = document.merged(document.part(("profiles", chosen)).without("profiles", "profile"))
    for edit in edits:
        document = edited(document, *edit)
    document = expanded(document)
    spec = _validated(document)
    spec = spec.model_copy(update={"evaluate": with_files(spec.evaluate, document, path.parent)})
    return Plan(spec, path, chosen, _resolve(spec, document, everywhere, path))


def _validated(document: Document) -> Sweep:
    try:
        return Sweep.model_validate(document.values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {line: [] for line in complaints(error, Sweep, document)}
        raise BadInput(summary(faults, [])) from None


def _resolve(spec: Sweep, document: Document, everywhere: Document, path: Path) -> list[PlannedTrial]:
    axes = {key: values for key, values in spec.grid.items() if not _holds(everywhere.values, key)}
    factors = (len(spec.variants), *map(len, axes.values()), len(spec.seeds))
    if math.prod(factors) > MAX_TRIALS:
        raise BadInput(
            f"{document.where(('grid',))}: variants x grid x seeds = {' x '.join(map(str, factors))} = {math.prod(factors):,} trials; at most {MAX_TRIALS:,} are planned at once"
        )
    check_report(spec, document)
    base, trials = document.part(("base",)), []
    faults: dict[str, list[str]] = {}
    for variant in spec.variants:
        over = document.part(("variants", variant))
        if not isinstance(over.values.get("why", ""), str):
            raise BadInput(f"{over.where(('why',))}: variants.{variant}.why: {over.values['why']!r} is not text")
        over = over.without("why")
        under = base.merged(over)
        for places in itertools.product(*(range(len(values)) for values in axes.values())):
            resolved, point = under, {}
            for key, place in zip(axes, places, strict=True):
                mark, point[key] = document.where(("grid", key, str(place))), axes[key][place]
                resolved = resolved.with_value(tuple(key.split(".")), point[key], mark)
            resolved = resolved.merged(everywhere)
            try:
                fields = _with_absolute_paths(Trial.model_validate(resolved.values), resolved, path)
            except ValidationError as error:
                for line in complaints(error, Trial, resolved):
                    faults.setdefault(line, []).append(variant)
                continue
            overrides = {**_flat(over.values), **point}
            trials += [
                PlannedTrial(name, variant, seed, fields, point, overrides)
                for name, seed in zip(trial_ids(fields, spec.seeds), spec.seeds, strict=True)
            ]
    if faults:
        raise BadInput(summary(faults, list(spec.variants)))
    check_sources(trials, document)
    check_averages(spec, trials, document)
    return trials


def _holds(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _with_absolute_paths(fields: Trial, document: Document, spec_path: Path) -> Trial:
    """The trial with its folder and files made absolute; a link keeps its name, which names the data set."""
    sections: dict[str, Section] = {}
    for (section, name), written in named_paths(fields).items():
        where = f"{document.where((section, name))}: {section}.{name}"
        try:
            found = spec_path.parent / Path(written).expanduser()
        except RuntimeError:
            raise BadInput(f"{where}: no such user in {one_line(written)!r}") from None
        if found.name == "..":
            found = resolved_path(found, where)
        absolute = str(resolved_path(found.parent, where) / found.name)
        sections[section] = sections.get(section, getattr(fields, section)).model_copy(update={name: absolute})
    return fields.model_copy(update=sections) if sections else fields


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat
