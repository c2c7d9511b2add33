"""Images as a viewer shows them: EXIF orientation applied, transparency composited over a background."""

from __future__ import annotations

import struct
from typing import Any

_ORIENTATION = 0x0112
BACKGROUNDS = {"white": 255, "grey": 128, "black": 0}
"""Grey level of each `data.background`."""


def as_shown(picture: Any, background: str) -> Any:
    """A decoded Pillow image in mode `L` or `RGB`.

    Args:
        picture: an image with 8 bits per channel.
        background: colour behind transparent pixels, a key of `BACKGROUNDS`.
    """
    from PIL import Image

    picture = upright(picture)
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB")
    opaque = "L" if picture.mode == "L" else "RGB"
    mixed = picture.convert("RGBA")
    below = Image.new("RGBA", mixed.size, (*[BACKGROUNDS[background]] * 3, 255))
    return Image.alpha_composite(below, mixed).convert(opaque)


def upright(picture: Any) -> Any:
    """The image with its EXIF orientation applied; damaged EXIF data are ignored."""
    from PIL import ImageOps

    picture.load()
    try:
        turned = picture.getexif().get(_ORIENTATION, 1) not in (1, 0)
        return ImageOps.exif_transpose(picture) if turned else picture
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return picture
