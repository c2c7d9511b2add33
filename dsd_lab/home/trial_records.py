"""What a trial's folder says: `trial.json`, `status.json` and the files beside them, and a spool's lines."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dsd_lab.errors import BadInput
from dsd_lab.home.names import PICTURE_STEM
from dsd_lab.home.record_types import (
    FORMAT,
    Canonical,
    Code,
    Command,
    Count,
    Date,
    Key,
    Metric,
    Number,
    PluginDigest,
    Record,
    Seconds,
    Sha256,
    Step,
    Text,
    TrialId,
    reason_of,
)
from dsd_lab.specs.part_fields import unknown_parts_pass
from dsd_lab.specs.sweep import NAME, PluginName
from dsd_lab.specs.trial import Trial


class DataRecord(Record):
    """What a trial was trained on."""

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


class Machine(Record):
    """Where a trial was trained."""

    host: Text
    system: Text
    processor: Text


class Provenance(Record):
    """Which code and packages trained a trial."""

    code: Code
    git_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None
    git_dirty: bool
    python: Text
    versions: dict[Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")], Text]
    machine: Machine
    device: Text
    command: Command | None = None
    git_diff: Sha256 | None = None
    plugins: dict[PluginName, PluginDigest] = {}


class Shown(Record):
    """How reports show a plug-in's metric."""

    label: Annotated[str, Field(max_length=200)]
    unit: Annotated[str, Field(max_length=40)] = ""
    digits: Annotated[int, Field(ge=0, le=12)] = 3
    note: Annotated[str, Field(max_length=1000)] = ""


class TrialRecord(Record):
    """`trial.json`."""

    format: int = 1
    schema_version: Count = 1
    """Version of its identity; records of version 1 do not name it."""
    id: TrialId
    variant: Annotated[str, Field(pattern=NAME)]
    point: dict[str, Any]
    seed: Count
    size: Text
    name: Text
    overrides: dict[str, Any]
    fields: Canonical
    """All fields of the trial, for what is computed from them by name; `trial` has them typed."""
    canonical: Canonical
    flops_per_image: Count | None = None
    data: DataRecord
    provenance: Provenance
    shown: dict[Metric, Shown] = {}
    own_parts: dict[Text, dict[Key, Text]] = {}
    """Parts of plug-ins that the trial used or may be measured by: plug-in, file and digest, by kind and name."""

    @cached_property
    def trial(self) -> Trial:
        """The fields, read as those of a spec are; parts of plug-ins need not be loaded.

        Raises:
            BadInput: they are not those of a trial of this version.
        """
        try:
            with unknown_parts_pass():
                return Trial.model_validate(self.fields)
        except ValidationError as error:
            raise BadInput(f"trial {self.id}: {reason_of(error, 'fields')}") from None


class CodeFrom(Record):
    """Which training code trained from which step."""

    code: Code
    step: Step

    @property
    def what(self) -> str:
        return self.code


class DeviceFrom(Record):
    """Which device trained from which step."""

    device: Text
    step: Step

    @property
    def what(self) -> str:
        return self.device


class BeganFrom(Record):
    """The trial from whose checkpoint another one went on, and its step."""

    trial: TrialId
    step: Step


class Status(Record):
    """`status.json`; without a value of a trial that never started."""

    NEEDED = ("state", "step", "steps", "attempt", "code")
    state: Literal["pending", "running", "done", "failed", "diverged", "interrupted", "stopped"] = "pending"
    step: Step = 0
    steps: Step = 0
    attempt: Count = 0
    code: Code | None = None
    trained_by: list[CodeFrom] = []
    trained_on: list[DeviceFrom] = []
    error: Text | None = None
    cause: Literal["input"] | None = None
    """`input`: the user can mend what failed, and the next sweep tries again."""
    began_from: BeganFrom | None = None
    spool_bytes: Count | None = None
    """Size of the spool with which an ended trial ended."""
    damaged: list[Text] = []
    """Checkpoints that were passed over."""
    seconds: Seconds = 0.0
    started: Date = 0.0
    updated: Date = 0.0
    pid: int | None = None
    devices: Text | None = None

    @property
    def own_steps(self) -> int:
        """Steps that `seconds` are of: without those that another trial has made."""
        return self.step - (0 if self.began_from is None else min(self.began_from.step, self.step))

    def refuse_inconsistent(self) -> None:
        if self.state == "pending" or self.code is None:
            raise ValueError("state: of a trial that never started")
        if self.step > self.steps or (self.state == "done" and self.step != self.steps):
            raise ValueError(f"step: {self.step} of {self.steps} steps, {self.state}")


class ProgressRecord(Record):
    """`progress.json`: how far a running attempt is."""

    attempt: Count
    step: Step
    seconds: Seconds
    updated: Date


class ImportedTrial(Record):
    """`imported.json`: which sweep an import brought a trial with, when, and what exported it."""

    sweep: Key
    at: Date
    made_by: dict[str, str] = {}


class Speed(Record):
    """What a record says of the machine that trained: no part of the result."""

    images_per_second: Number | None = None
    peak_memory_bytes: Count | None = None
    mfu: Number | None = None

    def metrics(self) -> dict[str, float]:
        """By the names that figures and the store know them by."""
        return {f"machine/{name}": float(value) for name, value in self if value is not None}


class SpoolLine(Record):
    """A line of `spool.jsonl`."""

    n: Step
    format: Annotated[int, Field(le=FORMAT)] = 1
    time: Date
    step: Step
    images: Step | None = None
    """Training images seen until this step; earlier versions did not record it, nor `flops`."""
    flops: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Training FLOPs made until this step."""
    kind: Literal["train", "probe", "images", "checkpoint", "diverged", "finished"]
    metrics: dict[Metric, Number] = {}
    spectra: dict[Metric, list[Number]] = {}
    files: list[Annotated[str, Field(pattern=rf"^{PICTURE_STEM}\.png$")]] = []
    seconds: Seconds | None = None
    reason: Text | None = None
    images_seen: Step | None = None
    machine: Speed | None = None

    @model_validator(mode="after")
    def _complete(self) -> SpoolLine:
        if self.kind in ("train", "probe") and self.seconds is None:
            raise ValueError(f"a {self.kind} line without seconds")
        if self.kind == "images" and "files" not in self.model_fields_set:
            raise ValueError("an images line without files")
        return self

    def measured(self) -> dict[str, float]:
        """Everything at this step that the store and a history know by a name of its own."""
        seen = {"seen/images": self.images, "seen/flops": self.flops} if self.kind == "train" else {}
        speed = {} if self.machine is None else self.machine.metrics()
        return self.metrics | {name: float(count) for name, count in seen.items() if count is not None} | speed

    def result(self) -> dict[str, Any]:
        """What of the line follows from trial, seed and step: no clock, no machine."""
        return self.model_dump(exclude_unset=True, exclude={"time", "seconds", "format", "machine"})


class Evaluation(Record):
    """A file of `evaluations/`."""

    NEEDED = ("settings", "seconds")
    settings: dict[str, Any] = {}
    metrics: dict[Metric, Number]
    seconds: Seconds = 0.0


class Parameters(Record):
    """`parameters.json`: what the report would read from weights that did not travel."""

    parameters: Count


class CheckpointManifest(Record):
    """`manifest.json` of a checkpoint."""

    format: Literal[1]
    step: Step
    state: dict[str, Any]
    bytes: Count
    sha256: Sha256
