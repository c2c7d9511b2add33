"""`manifest.json` of a checkpoint, typed: what a trainer writes, and what is checked without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dsd_lab.files.sealed import is_intact


class CheckpointContent(BaseModel):
    """What a manifest says. A later version may add keys: the seal is of all of them."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    format: Literal[1]
    step: Annotated[int, Field(ge=0, lt=10**11)]
    state: dict[str, Any]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    """Of the tensors' file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the same."""
    manifest_sha256: str | None = None
    """Of the manifest itself; earlier versions wrote none."""

    @property
    def intact(self) -> bool:
        """Whether it is the manifest that was written."""
        return is_intact(self.model_dump(exclude_unset=True))

    def is_of(self, size: int, digest: str) -> bool:
        """Whether a file of this size and SHA-256 is the one that was written beside it."""
        return (self.bytes, self.sha256) == (size, digest)
