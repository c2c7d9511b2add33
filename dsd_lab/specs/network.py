"""Fields of the network, and the named sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.part_fields import Choice, PartSection


class Network(PartSection):
    """One vision transformer in three roles: encode, denoise, decode."""

    size: Literal["nano8", "nano28", "nano32", "nano64", "tiny64", "tiny128", "small256", "middle256", "base256"] = (
        "nano8"
    )
    """A named size; the fields below override its values."""
    layout: Literal["modular", "coupled", "separate"] = "modular"
    """`modular`: each role has its own blocks. `coupled`: all roles share all blocks. `separate`: three networks that share no weights."""
    block: Annotated[str, Choice("block")] = "adaln_zero"
    """The transformer block of all roles: attention and MLP with adaLN-Zero (arXiv 2212.09748), or a plug-in's."""
    image_size: int | None = Field(None, ge=2, le=1024)
    """Pixels per side of an image."""
    patch_size: int | None = Field(None, ge=1, le=64)
    """Pixels per side of a patch; each patch is one latent token."""
    latent_channels: int | None = Field(None, ge=1, le=1024)
    """Channels of a latent token."""
    width: int | None = Field(None, ge=8, le=8192)
    """Channels of a transformer token."""
    heads: int | None = Field(None, ge=1, le=128)
    """Attention heads."""
    encode_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks of the encoder (`modular`, `separate`)."""
    denoise_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks of the denoiser (`modular`, `separate`)."""
    decode_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks of the decoder (`modular`, `separate`)."""
    shared_blocks: int | None = Field(None, ge=1, le=128)
    """Blocks shared by all roles (`coupled`)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = values.get("size", "nano8")
        row = SIZES.get(size, {}) if isinstance(size, str) else {}
        return {**row, **{k: v for k, v in values.items() if v is not None or k == "size"}}

    @model_validator(mode="after")
    def _divides(self) -> Network:
        if self.image_size is None or self.patch_size is None or self.width is None or self.heads is None:
            return self  # an invalid size has its own error
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size: {self.patch_size} does not divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width: {self.width} is not a multiple of 4, as 2D sine position codes need")
        return self

    @property
    def tokens(self) -> int:
        """Latent tokens per image: one per patch."""
        return (int(self.image_size or 0) // int(self.patch_size or 1)) ** 2


_COLUMNS = (
    "image_size",
    "patch_size",
    "latent_channels",
    "width",
    "heads",
    "encode_blocks",
    "denoise_blocks",
    "decode_blocks",
    "shared_blocks",
)


# fmt: off
#               pixels patch chans width heads enc den dec shared
_TABLE = {
    "nano8":     (   8,    4,    8,   64,    4,  2,  2,  2,   3),
    "nano28":    (  28,    4,    4,   96,    4,  2,  3,  2,   4),
    "nano32":    (  32,    4,    8,  128,    4,  2,  4,  2,   5),
    "nano64":    (  64,    8,   16,  128,    4,  2,  3,  2,   5),
    "tiny64":    (  64,    8,   16,  256,    4,  2,  6,  2,   6),
    "tiny128":   ( 128,   16,   32,  256,    4,  2,  6,  2,   6),
    "small256":  ( 256,   16,   16,  384,    6,  3,  9,  3,  15),
    "middle256": ( 256,   16,   16,  648,    9,  3,  9,  3,  15),
    "base256":   ( 256,   16,   16,  768,   12,  4, 11,  4,  19),
}


SIZES: dict[str, dict[str, Any]] = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _TABLE.items()}
