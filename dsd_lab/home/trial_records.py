"""Records of a trial's folder: `trial.json`, `status.json`, other files, and lines of the spool."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dsd_lab.errors import BadInput
from dsd_lab.files.checkpoint_manifest import CheckpointContent
from dsd_lab.home.data_records import Facts
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


class _Identity(Record):
    name: Text
    fingerprint: Sha256


class DataRecord(Facts, _Identity):
    """Data that a trial was trained on."""


class Machine(Record):
    """Machine that trained a trial."""

    host: Text
    system: Text
    processor: Text


class Provenance(Record):
    """Code and packages that trained a trial."""

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
    """Presentation of a plug-in's metric in reports."""

    label: Annotated[str, Field(max_length=200)]
    unit: Annotated[str, Field(max_length=40)] = ""
    digits: Annotated[int, Field(ge=0, le=12)] = 3
    note: Annotated[str, Field(max_length=1000)] = ""


class TrialRecord(Record):
    """`trial.json`."""

    format: int = 1
    schema_version: Count = 1
    """Version of the trial id; records of version 1 do not name it."""
    id: TrialId
    variant: Annotated[str, Field(pattern=NAME)]
    point: dict[str, Any]
    seed: Count
    size: Text
    name: Text
    overrides: dict[str, Any]
    fields: Canonical
    """All fields by name; `trial` has them typed."""
    canonical: Canonical
    flops_per_image: Count | None = None
    data: DataRecord
    provenance: Provenance
    shown: dict[Metric, Shown] = {}
    own_parts: dict[Text, dict[Key, Text]] = {}
    """Plug-in parts that the trial used or may be measured by: plug-in, file and digest, by kind and name."""

    @cached_property
    def trial(self) -> Trial:
        """The fields, parsed like those of a spec; plug-ins need not be loaded.

        Raises:
            BadInput: they are invalid in this version of dsd-lab.
        """
        try:
            with unknown_parts_pass():
                return Trial.model_validate(self.fields)
        except ValidationError as error:
            raise BadInput(f"trial {self.id}: {reason_of(error, 'fields')}") from None


class CodeFrom(Record):
    """Training code from a given step on."""

    code: Code
    step: Step

    @property
    def what(self) -> str:
        return self.code


class DeviceFrom(Record):
    """Device from a given step on."""

    device: Text
    step: Step

    @property
    def what(self) -> str:
        return self.device


class BeganFrom(Record):
    """Trial and step of the checkpoint from which a trial started."""

    trial: TrialId
    step: Step


class Status(Record):
    """`status.json`; the defaults are those of a trial that was never started."""

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
    """`input`: the user can fix the failure, so the next sweep retries the trial."""
    began_from: BeganFrom | None = None
    spool_bytes: Count | None = None
    """Size of the spool when the trial ended."""
    damaged: list[Text] = []
    """Damaged checkpoints that were skipped."""
    seconds: Seconds = 0.0
    started: Date = 0.0
    updated: Date = 0.0
    pid: int | None = None
    devices: Text | None = None

    @property
    def own_steps(self) -> int:
        """Steps that `seconds` covers: without those trained by another trial."""
        return self.step - (0 if self.began_from is None else min(self.began_from.step, self.step))

    def refuse_inconsistent(self) -> None:
        if self.state == "pending" or self.code is None:
            raise ValueError("state: the trial was never started")
        if self.step > self.steps or (self.state == "done" and self.step != self.steps):
            raise ValueError(f"step: {self.step} of {self.steps} steps, {self.state}")


class ProgressRecord(Record):
    """`progress.json`: progress of a running attempt."""

    attempt: Count
    step: Step
    seconds: Seconds
    updated: Date


class ImportedTrial(Record):
    """`imported.json`: sweep, time and exporter of an imported trial."""

    sweep: Key
    at: Date
    made_by: dict[str, str] = {}


class Speed(Record):
    """Speed and memory of training, which are not part of the result."""

    images_per_second: Number | None = None
    peak_memory_bytes: Count | None = None
    mfu: Number | None = None

    def metrics(self) -> dict[str, float]:
        """Values by the metric names of figures and the store."""
        return {f"machine/{name}": float(value) for name, value in self if value is not None}


class SpoolLine(Record):
    """A line of `spool.jsonl`."""

    n: Step
    format: Annotated[int, Field(le=FORMAT)] = 1
    time: Date
    step: Step
    images: Step | None = None
    """Training images seen up to this step; missing in earlier versions, like `flops`."""
    flops: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Training FLOPs up to this step."""
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
        """All metrics of this step by name, as in the store and the history."""
        seen = {"seen/images": self.images, "seen/flops": self.flops} if self.kind == "train" else {}
        speed = {} if self.machine is None else self.machine.metrics()
        return self.metrics | {name: float(count) for name, count in seen.items() if count is not None} | speed

    def result(self) -> dict[str, Any]:
        """The part that is determined by trial, seed and step: no clock, no machine."""
        return self.model_dump(exclude_unset=True, exclude={"time", "seconds", "format", "machine"})


class Evaluation(Record):
    """A file of `evaluations/`."""

    NEEDED = ("settings", "seconds")
    settings: dict[str, Any] = {}
    metrics: dict[Metric, Number]
    seconds: Seconds = 0.0


class Parameters(Record):
    """`parameters.json`: parameter counts, for trials exported without weights."""

    parameters: Count


class CheckpointManifest(CheckpointContent, Record):
    """`manifest.json` of a checkpoint."""
