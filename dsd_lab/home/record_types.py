"""Base class of the records in a home folder (reading, checks, writing), and types that records share."""

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
"""Version of the files in a home folder and an export; a file without one is of version 1."""
FOREIGN = "foreign"
"""Validation context of a foreign file, whose required fields are those that dsd-lab always writes (`NEEDED`)."""

Key = Annotated[str, Field(pattern=rf"^{SWEEP_KEY}$")]


def _trial_id(value: Any) -> Any:
    if not is_trial_id(value):
        raise ValueError(f"{str(value)[:200]!r} is not a trial id")
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
"""Section -> field -> value of a trial, under present names."""
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Step = Annotated[int, Field(ge=0, lt=10**11)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


def _is_date(value: float) -> float:
    if value and not is_date(value):
        raise ValueError(f"{value:g} is not a date between 2000 and 2100 in seconds since 1970")
    return value


Date = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_is_date)]
"""Seconds since 1970; 0 where unknown."""


class DamagedRecord(BadInput):
    """A file that is not a valid record of its kind; `reason` is the message without the file's name."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


class Record(BaseModel):
    """Content of a file. Unknown entries are ignored.

    A home's own file may lack fields with a default, since an earlier version may have written it. A foreign file
    must have the fields in `NEEDED`.
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
        """Checks across fields, for foreign records only.

        Raises:
            ValueError: fields contradict each other.
        """

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the record in a file; None where it is missing, empty or damaged as after a power cut.

        Raises:
            BadInput: it is not a regular file, or newer than this program.
            DamagedRecord: it is not a valid record of its kind.
        """
        content = read_json_object(path)
        return None if content is None else cls.of(content, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> Self:
        """Build a record from JSON; `where` begins the message.

        Raises:
            BadInput: it is newer than this program.
            DamagedRecord: it is not a valid record of its kind.
        """
        refuse_newer(content, where)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DamagedRecord(where, reason_of(error)) from None

    @classmethod
    def known(cls, path: Path) -> Self | None:
        """Read the record in a file; None where it is missing, a link, or damaged."""
        try:
            return None if path.is_symlink() else cls.read(path)
        except (BadInput, OSError):
            return None

    def write(self, path: Path, durable: bool = False) -> None:
        """Replace the file. Fields that were not set are not written."""
        write_atomic(path, self.model_dump_json(indent=1, exclude_unset=True) + "\n", durable)

    def changed(self, **fields: Any) -> Self:
        """A checked copy with other values."""
        return type(self).model_validate(self.model_dump(exclude_unset=True) | fields)


def refuse_newer(content: Mapping[str, Any], where: str) -> None:
    """Refuse a file of a newer format.

    Raises:
        BadInput: its `format` is newer than this program's.
    """
    version = content.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise BadInput(f"{where}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab")


def reason_of(error: ValidationError, prefix: str = "") -> str:
    """The first error of a validation as `key: reason`."""
    first = error.errors(include_url=False)[0]
    key = ".".join([*([prefix] if prefix else []), *(str(part) for part in first["loc"])])
    reason = (first["msg"].removeprefix("Value error, ").splitlines() or ["?"])[0]
    return one_line(f"{key}: " if key else "", 300) + one_line(reason, 500)
