"""How a record of a home folder is read, checked and written, and the types that records share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_atomic
from dsd_lab.files.bounded import read_json_object
from dsd_lab.home.names import METRIC, SWEEP_KEY, is_date, is_trial_id
from dsd_lab.specs.renamed import present_fields
from dsd_lab.specs.yaml_document import one_line

FORMAT = 1
"""Version of the files below a home folder and of an export; a file that says none is of the first."""
FOREIGN = "foreign"
"""Context of a validation: the file is somebody else's, and must say everything that a file of its kind says."""

Key = Annotated[str, Field(pattern=rf"^{SWEEP_KEY}$")]


def _trial_id(value: Any) -> Any:
    if not is_trial_id(value):
        raise ValueError(f"{str(value)[:200]!r} is not the id of a trial")
    return value


TrialId = Annotated[str, BeforeValidator(_trial_id)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
TEXT = 10_000
Text = Annotated[str, Field(max_length=TEXT)]
Metric = Annotated[str, Field(pattern=rf"^{METRIC}$")]
PluginDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Command = Annotated[str, Field(max_length=200_000)]
Canonical = Annotated[dict[str, dict[str, Any]], BeforeValidator(present_fields)]
"""Section -> field -> value of a trial, under today's names."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, lt=10**11)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


def _is_date(value: float) -> float:
    if value and not is_date(value):
        raise ValueError(f"{value:g} is no date between 2000 and 2100, in seconds since 1970")
    return value


Date = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_is_date)]
"""Seconds since 1970; 0 where it is not known."""


class DamagedRecord(BadInput):
    """A file that does not say what a file of its kind says; `reason` is the message without the file's name."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


class Record(BaseModel):
    """What a file holds; it may hold more, which nothing reads.

    A home's own file may lack what a field has a default for: an earlier version wrote it. A foreign one may not
    lack what is in `NEEDED`.
    """

    model_config = ConfigDict(strict=True, frozen=True)
    NEEDED: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        if info.context == FOREIGN:
            for name in self.NEEDED:
                if name not in self.model_fields_set:
                    raise ValueError(f"{name}: is missing")
            self.refuse_inconsistent()
        return self

    def refuse_inconsistent(self) -> None:
        """What no single field shows; asked of foreign records only.

        Raises:
            ValueError: its parts do not agree with each other.
        """

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None where there is no file, or what a power cut can leave of one.

        Raises:
            BadInput: it is a pipe, a device or a folder, or newer than this program.
            DamagedRecord: it is not what such a file says.
        """
        content = read_json_object(path)
        return None if content is None else cls.of(content, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> Self:
        """A record from JSON; `where` begins the message.

        Raises:
            BadInput: it is newer than this program.
            DamagedRecord: it is not what such a file says.
        """
        refuse_newer(content, where)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DamagedRecord(where, reason_of(error)) from None

    @classmethod
    def known(cls, path: Path) -> Self | None:
        """The record in a file; None where it is missing, a link, or damaged in any way."""
        try:
            return None if path.is_symlink() else cls.read(path)
        except (BadInput, OSError):
            return None

    def write(self, path: Path, durable: bool = False) -> None:
        """Replace a file; what was not given is not written."""
        write_atomic(path, self.model_dump_json(indent=1, exclude_unset=True) + "\n", durable)

    def changed(self, **fields: Any) -> Self:
        """The same with other values, checked."""
        return type(self).model_validate(self.model_dump(exclude_unset=True) | fields)


def refuse_newer(content: Mapping[str, Any], where: str) -> None:
    """Refuse a file of a version that this program does not know.

    Raises:
        BadInput: its `format` is newer.
    """
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise BadInput(f"{where}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab")


def reason_of(error: ValidationError, prefix: str = "") -> str:
    """The first fault that a validation found, as `key: reason`."""
    first = error.errors(include_url=False)[0]
    key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
    reason = (first["msg"].removeprefix("Value error, ").splitlines() or ["?"])[0]
    return one_line(f"{key}: " if key else "", 300) + one_line(reason, 500)
