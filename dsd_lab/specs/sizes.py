"""Network sizes by name, as one aligned table.

`modular` gives each role its own blocks (encode, denoise, decode); `coupled` runs one stack of
`shared` blocks in all three roles. Sizes and splits are ours: the paper publishes parameter
counts only (42M, 118M, 205M).
"""

from typing import Any

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
# fmt: on

SIZES: dict[str, dict[str, Any]] = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in _TABLE.items()}
