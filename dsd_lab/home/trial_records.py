"""`trial.json` and `status.json` of a trial, as they are read and checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dsd_lab.home.record_types import (
    Code,
    Count,
    Date,
    Metric,
    Number,
    PluginDigest,
    Record,
    Seconds,
    Sha256,
    Text,
    TrialId,
)
from dsd_lab.specs.renamed import present_fields
from dsd_lab.specs.sweep import NAME, PluginName
from dsd_lab.specs.trial import Trial


class _DataRecord(Record):
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


class _Machine(Record):
    host: Text
    system: Text
    processor: Text


class _Provenance(Record):
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


class _Shown(Record):
    """How reports show a plug-in's metric."""

    label: Annotated[str, Field(max_length=200)]
    unit: Annotated[str, Field(max_length=40)] = ""
    digits: Annotated[int, Field(ge=0, le=12)] = 3
    note: Annotated[str, Field(max_length=1000)] = ""


class TrialRecord(Record):
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


class _CodeFrom(Record):
    code: Code
    step: Count


class _DeviceFrom(Record):
    device: Text
    step: Count


class Status(Record):
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
