"""The format of an exported folder: which files it may hold, and what each of them has to say.

    export.json                       format version, and size and SHA-256 of every other file
    sweeps/<key>/                     manifest.json  spec.json (the resolved spec)
    trials/<id>/                      trial.json (fields, data, provenance)  status.json  spool.jsonl  parameters.json
    trials/<id>/code.diff             what the work tree differed by from its commit
    plugins/<digest>/<name>.py        sources of the plug-ins that were loaded; an import runs none
    trials/<id>/images/*.png          trials/<id>/evaluations/*.json
    trials/<id>/checkpoints/step-N/   manifest.json  tensors.safetensors: the newest, where weights were asked for

A file of any other name is refused, so that no path can leave its root and nothing is ever unpickled.
What files say is checked too: names in a manifest or a spool become paths and queries later on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import parse_json
from dsd_lab.home.names import METRIC, PICTURE_STEM, SWEEP_KEY, TRIAL_ID, is_date
from dsd_lab.specs.part_fields import unknown_parts_pass
from dsd_lab.specs.renamed import present_fields
from dsd_lab.specs.sweep import MAX_TRIALS, NAME, PluginName, Sweep, trial_name
from dsd_lab.specs.trial import Trial
from dsd_lab.specs.yaml_document import one_line

FORMAT = 1
INDEX = "export.json"
_TRIAL = rf"trials/(?P<trial>{TRIAL_ID})"
_PLACES = (
    rf"sweeps/{SWEEP_KEY}/(?P<kind>manifest|spec)\.json",
    rf"{_TRIAL}/(?P<kind>trial|status|parameters)\.json",
    rf"{_TRIAL}/(?P<kind>spool)\.jsonl",
    rf"{_TRIAL}/code\.(?P<kind>diff)",
    r"plugins/[0-9a-f]{12}/[A-Za-z_][A-Za-z0-9_]{0,63}\.(?P<kind>py)",
    rf"{_TRIAL}/images/{PICTURE_STEM}\.(?P<kind>png)",
    rf"{_TRIAL}/(?P<kind>evaluation)s/[0-9a-f]{{8}}\.json",
    rf"{_TRIAL}/checkpoints/step-\d{{9}}/(?P<kind>tensors)\.safetensors",
    rf"{_TRIAL}/(?P<kind>checkpoint)s/step-\d{{9}}/manifest\.json",
)

Key = Annotated[str, Field(pattern=rf"^{SWEEP_KEY}$")]
TrialId = Annotated[str, Field(pattern=rf"^{TRIAL_ID}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, Field(max_length=10_000)]
Metric = Annotated[str, Field(pattern=rf"^{METRIC}$")]
PluginDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


def _is_date(value: float) -> float:
    if value and not is_date(value):
        raise ValueError(f"{value:g} is no date between 2000 and 2100, in seconds since 1970")
    return value


Date = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_is_date)]
"""Seconds since 1970; 0 where it is not known."""


class _File(BaseModel):
    """What a file must hold; it may hold more, which nothing reads."""

    model_config = ConfigDict(strict=True, frozen=True)


class Listed(_File):
    """A file of the export."""

    sha256: Sha256
    bytes: Count


class Index(_File):
    """`export.json`."""

    format: int
    sweep: Key
    weights: bool
    schema_version: int
    """Version of the trials' identities."""
    made_by: dict[str, str]
    files: dict[str, Listed]


class Entry(_File):
    """A trial of a manifest."""

    id: TrialId
    name: Text
    variant: Annotated[str, Field(pattern=NAME)]
    point: dict[str, Any]
    seed: Count
    size: Text
    steps: Count
    overrides: dict[str, Any]
    canonical: dict[str, dict[str, Any]]
    has_denoiser: bool

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        wanted = trial_name(self.variant, self.point, self.seed)
        if self.name != wanted:
            raise ValueError(f"name: {self.name!r} is not the name of its variant, point and seed, {wanted!r}")
        if self.canonical.get("training", {}).get("steps") != self.steps:
            raise ValueError(f"steps: {self.steps} are not those of its fields")
        return self


class Manifest(_File):
    """`manifest.json` of a sweep."""

    key: Key
    name: Annotated[str, Field(pattern=NAME)]
    profile: Annotated[str, Field(pattern=NAME)] | None
    why: Text
    run_at: Date
    spec: dict[str, Any]
    evaluations: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")], dict[str, Any]]
    trials: list[Entry]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        wanted = f"{self.name}--{self.profile}" if self.profile else self.name
        if self.key != wanted or Sweep.model_validate(self.spec).name != self.name:
            raise ValueError(f"key, name, profile and spec do not agree: {self.key!r} is not {wanted!r}")
        if len(self.trials) > MAX_TRIALS:
            raise ValueError(f"trials: {len(self.trials):,}, more than {MAX_TRIALS:,}")
        for entry in self.trials:
            if entry.variant not in self.spec["variants"]:
                raise ValueError(f"trials: {entry.name!r}: the spec has no variant {entry.variant!r}")
        names = [entry.name for entry in self.trials]
        if len(set(names)) < len(names):
            raise ValueError(f"trials: {max(names, key=names.count)!r} is there twice")
        return self


class _DataRecord(_File):
    name: Text
    fingerprint: Sha256
    train: Count
    holdout: Count
    classes: Count
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    mean: list[Number] = []
    std: list[Number] = []
    min: Count = 0
    max: Count = 255
    train_by_class: list[Count] = []
    holdout_by_class: list[Count] = []
    class_names: list[Text] = []
    holdout_from: Text = ""
    notes: list[Text] = []
    resident: bool = True
    damaged: Count = 0
    damaged_named: list[Text] = []


class _Machine(_File):
    host: Text
    system: Text
    processor: Text


class _Provenance(_File):
    code: Code
    git_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None
    git_dirty: bool
    python: Text
    versions: dict[Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")], Text]
    machine: _Machine
    device: Text
    command: Annotated[str, Field(max_length=200_000)] | None = None
    git_diff: Sha256 | None = None
    plugins: dict[PluginName, PluginDigest] = {}


class _Shown(_File):
    """How reports show a plug-in's metric."""

    label: Annotated[str, Field(max_length=200)]
    unit: Annotated[str, Field(max_length=40)] = ""
    digits: Annotated[int, Field(ge=0, le=12)] = 3
    note: Annotated[str, Field(max_length=1000)] = ""


class TrialRecord(_File):
    """`trial.json`."""

    schema_version: Count = 1
    """Version of its identity; records of version 1 do not name it."""
    id: TrialId
    variant: Annotated[str, Field(pattern=NAME)]
    point: dict[str, Any]
    seed: Count
    size: Text
    name: Text
    overrides: dict[str, Any]
    fields: Annotated[Trial, BeforeValidator(present_fields)]
    canonical: dict[str, dict[str, Any]]
    flops_per_image: Count | None = None
    data: _DataRecord
    provenance: _Provenance
    shown: dict[Metric, _Shown] = {}


class _CodeFrom(_File):
    code: Code
    step: Count


class _DeviceFrom(_File):
    device: Text
    step: Count


class Status(_File):
    """`status.json`."""

    state: Literal["running", "done", "failed", "diverged", "interrupted", "stopped"]
    step: Count
    steps: Count
    attempt: Count
    code: Code
    trained_by: list[_CodeFrom] = []
    trained_on: list[_DeviceFrom] = []
    error: Text | None = None
    seconds: Seconds = 0.0
    started: Date = 0.0
    updated: Date = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Status:
        if self.step > self.steps or (self.state == "done" and self.step != self.steps):
            raise ValueError(f"step: {self.step} of {self.steps} steps, {self.state}")
        return self


class SpoolLine(_File):
    """A line of `spool.jsonl`."""

    n: Count
    time: Date
    step: Count
    kind: Literal["train", "probe", "images", "checkpoint", "diverged", "finished"]
    metrics: dict[Metric, Number] = {}
    spectra: dict[Metric, list[Number]] = {}
    files: list[Annotated[str, Field(pattern=rf"^{PICTURE_STEM}\.png$")]] = []
    seconds: Seconds | None = None

    @model_validator(mode="after")
    def _complete(self) -> SpoolLine:
        if self.kind in ("train", "probe") and self.seconds is None:
            raise ValueError(f"a {self.kind} line without seconds")
        if self.kind == "images" and "files" not in self.model_fields_set:
            raise ValueError("an images line without files")
        return self


class Evaluation(_File):
    """A file of `evaluations/`."""

    settings: dict[str, Any]
    metrics: dict[Metric, Number]
    seconds: Seconds


class Parameters(_File):
    """`parameters.json`: what the report would read from weights that did not travel."""

    parameters: Count


class CheckpointManifest(_File):
    """`manifest.json` of a checkpoint."""

    format: Literal[1]
    step: Count
    state: dict[str, Any]
    bytes: Count
    sha256: Sha256


_MODELS: dict[str, type[_File]] = {
    "manifest": Manifest,
    "trial": TrialRecord,
    "status": Status,
    "parameters": Parameters,
    "evaluation": Evaluation,
    "checkpoint": CheckpointManifest,
}


def kind_of(name: str) -> tuple[str, str | None] | None:
    """What a relative path of an export is, and of which trial; None where an export has no such file."""
    for place in _PLACES:
        if found := re.fullmatch(place, name, re.ASCII):
            groups = found.groupdict()
            return groups["kind"], groups.get("trial")
    return None


def parsed(kind: str, where: str, raw: bytes) -> Any:
    """What a JSON file says, checked; of a spool, None: each of its lines is checked, and none is kept.

    Raises:
        BadInput: it is no JSON, or not what a file of its kind says.
    """
    with unknown_parts_pass():
        return _parsed(kind, where, raw)


def _parsed(kind: str, where: str, raw: bytes) -> Any:
    if kind == "spool":
        if raw and not raw.endswith(b"\n"):
            raise BadInput(f"{where}: the last line is incomplete")
        lines = raw.split(b"\n")[:-1]
        for n, line in enumerate(lines, 1):
            _checked(SpoolLine.model_validate, f"{where}: line {n}", line)
        return None
    if kind == "spec":
        return _checked(Sweep.model_validate, where, raw)
    return _checked(_MODELS[kind].model_validate, where, raw)


def parsed_index(where: str, raw: bytes) -> Index:
    """`export.json`; a newer format is refused by its number before anything else of it is read.

    Raises:
        BadInput: it is not what an index says, or newer than this program.
    """
    content = _checked(dict, where, raw)
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BadInput(f"{where}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab")
    if version != FORMAT:
        raise BadInput(f"{where}: is not the index of an export: format {version!r}")
    return _checked(Index.model_validate, where, raw)


def _checked(check: Callable[[Any], Any], where: str, raw: bytes) -> Any:
    try:
        return check(parse_json(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = (first["msg"].removeprefix("Value error, ").splitlines() or ["?"])[0]
        raise BadInput(f"{where}: {one_line(key + ': ' if key else '', 300)}{one_line(reason, 500)}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{where}: is not what it should be: {one_line((str(error).splitlines() or ['?'])[0], 300)}"
        ) from None
