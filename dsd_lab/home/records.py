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

from pydantic import Field, ValidationError, model_validator

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import parse_json
from dsd_lab.home.names import PICTURE_STEM, SWEEP_KEY, TRIAL_ID
from dsd_lab.home.record_types import (
    Count,
    Date,
    Key,
    Metric,
    Number,
    Record,
    Seconds,
    Sha256,
    Text,
    TrialId,
)
from dsd_lab.home.trial_records import Status, TrialRecord
from dsd_lab.specs.part_fields import unknown_parts_pass
from dsd_lab.specs.sweep import MAX_TRIALS, NAME, Sweep, trial_name
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


class Listed(Record):
    """A file of the export."""

    sha256: Sha256
    bytes: Count


class Index(Record):
    """`export.json`."""

    format: int
    sweep: Key
    weights: bool
    schema_version: int
    """Version of the trials' identities."""
    made_by: dict[str, str]
    files: dict[str, Listed]


class Entry(Record):
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


class Manifest(Record):
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


class SpoolLine(Record):
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


class Evaluation(Record):
    """A file of `evaluations/`."""

    settings: dict[str, Any]
    metrics: dict[Metric, Number]
    seconds: Seconds


class Parameters(Record):
    """`parameters.json`: what the report would read from weights that did not travel."""

    parameters: Count


class CheckpointManifest(Record):
    """`manifest.json` of a checkpoint."""

    format: Literal[1]
    step: Count
    state: dict[str, Any]
    bytes: Count
    sha256: Sha256


_MODELS: dict[str, type[Record]] = {
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
