"""Open image files: a list of allowed formats, limits on bytes and pixels, and a single error class."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import read_plain

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Formats of datasets. Others are refused: some decoders start programs, such as Ghostscript for EPS."""
MAX_BYTES = 256 * 2**20
"""Of an image file."""
MAX_PIXELS = 2**27
"""Of an image of a dataset, before and after resizing."""
MAX_GRID_PIXELS = 2**25
"""Of an image grid that a trial wrote and that the report and MLflow show."""


class DamagedImage(BadInput):
    """An unusable image. `data.damaged: skip` leaves it out."""


def open_image(source: bytes | Path, formats: tuple[str, ...] = FORMATS, most: int = MAX_PIXELS) -> Any:
    """Open and decode an image with Pillow.

    Args:
        source: the bytes of an image file, or its path.
        formats: Pillow's names of the allowed formats.
        most: allowed pixels (width times height), checked against the header before decoding.

    Raises:
        DamagedImage: it cannot be read or decoded. The message is the reason alone.
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
    except Exception as error:  # decoders raise anything on damaged bytes, IndexError and MemoryError included
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        reason = reason.split(" <_io.")[0]  # Pillow says "image file <_io.BytesIO object at 0x...>"
        raise DamagedImage(reason or type(error).__name__) from None
    return picture


def open_grid(source: bytes | Path) -> Any:
    """Open an image grid that a trial wrote: a PNG of at most `MAX_GRID_PIXELS`. As `open_image` otherwise."""
    return open_image(source, ("PNG",), MAX_GRID_PIXELS)


def grid_bytes(path: Path) -> bytes:
    """The bytes of an image grid that a trial wrote, after a test that they decode.

    Raises:
        DamagedImage: as `open_grid`.
    """
    try:
        raw = read_plain(path, MAX_BYTES)
    except OSError as error:
        raise DamagedImage(error.strerror or "cannot be read") from None
    open_grid(raw)
    return raw
