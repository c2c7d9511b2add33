"""The one place where an image file is opened: named formats, bounded pixels, and one error for whatever is wrong."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import read_plain

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats of data sets. No other is tried: some decoders start programs, such as Ghostscript for EPS."""
MAX_BYTES = 256 * 2**20
"""Of an image file."""
MAX_PIXELS = 2**27
"""Of an image of a data set, before and after it is resized."""
MAX_GRID_PIXELS = 2**25
"""Of a grid that a trial drew: a report, a store and a browser show it."""


class DamagedImage(BadInput):
    """An image that cannot be used; `data.damaged: skip` leaves it out."""


def open_image(source: bytes | Path, formats: tuple[str, ...] = FORMATS, most: int = MAX_PIXELS) -> Any:
    """A Pillow image, decoded.

    Args:
        source: the bytes of an image file, or its path.
        formats: Pillow's names of the formats that it may have.
        most: pixels (width times height) that it may have; those that its header declares are compared before any is decoded.

    Raises:
        DamagedImage: it cannot be read or decoded, for whatever reason; the message is the reason alone.
    """
    from PIL import Image

    try:
        raw = source if isinstance(source, bytes) else read_plain(source, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(raw), formats=formats)
        if picture.width * picture.height > most:
            raise DamagedImage(f"{picture.width} x {picture.height} pixels, more than {most:,}")
        picture.load()
    except DamagedImage:
        raise
    except Exception as error:  # a decoder of damaged bytes ends with any of them, IndexError and MemoryError too
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        reason = reason.split(" <_io.")[0]  # Pillow says "image file <_io.BytesIO object at 0x...>"
        raise DamagedImage(reason or type(error).__name__) from None
    return picture


def open_grid(source: bytes | Path) -> Any:
    """A picture that a trial drew, as `open_image`: a PNG of at most `MAX_GRID_PIXELS`."""
    return open_image(source, ("PNG",), MAX_GRID_PIXELS)


def grid_bytes(path: Path) -> bytes:
    """The bytes of a picture that a trial drew, once they have been decoded.

    Raises:
        DamagedImage: as `open_grid`.
    """
    try:
        raw = read_plain(path, MAX_BYTES)
    except OSError as error:
        raise DamagedImage(error.strerror or "cannot be read") from None
    open_grid(raw)
    return raw
