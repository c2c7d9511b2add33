"""The two forms of a prepared set's images, as they are written and checked: an array, and JPEG files end to end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from dsd_lab.core.data.decoding import in_order
from dsd_lab.core.data.prepared import IMAGES, PACK, decode_jpeg
from dsd_lab.core.data.records import PackedRecords, shown
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import sync_file

_OFFSETS, _SIZES = PACK.replace(".pack", ".npy"), PACK.replace(".pack", ".sizes")


class ImageFile(ABC):
    """Images [C, H, W] uint8 of one shape in one file, appended in order."""

    names: tuple[str, ...] = ()

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.shape = folder, shape
        self.path = folder / self.names[0]
        self.rows, self.end = 0, 0
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def begin(self, rows: int, end: int) -> None:
        """Go on after so many images, which end at this byte; what comes after them is cut off.

        Raises:
            BadInput: the file is shorter.
        """
        self.rows, self.end = rows, end or self._head()
        self._file = _reopened(self.path, self.end, rows > 0)

    def _head(self) -> int:
        """Bytes in front of the first image."""
        return 0

    @abstractmethod
    def encode(self, pixels: np.ndarray) -> bytes:
        """What is written of an image, [C, H, W] or of one channel where it is grey; called from several threads."""

    def append(self, raw: bytes) -> None:
        """Write the next image."""
        assert self._file is not None
        self._digest.update(raw)
        self.end += self._file.write(raw)
        self.rows += 1

    def flush(self) -> str:
        """Bring what was appended to the disk; returns the SHA-256 of what came since the last call."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        found, self._digest = self._digest.hexdigest(), hashlib.sha256()
        return found

    def finish(self, rows: int) -> None:
        """Complete the file, and let go of what the system keeps of it, so that checking reads the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file that is written."""
        if self._file is not None:
            self._file.close()

    @abstractmethod
    def digest(self, rows: range) -> str:
        """SHA-256 of what was written of some images."""

    @abstractmethod
    def pixels(self, rows: range) -> np.ndarray:
        """Images [N, C, H, W] uint8."""


class ArrayFile(ImageFile):
    """A NumPy array [N, C, H, W]; its header is written when N is known."""

    names = (IMAGES,)

    def _head(self) -> int:
        return len(_npy_header((1, *self.shape)))

    def encode(self, pixels: np.ndarray) -> bytes:
        fits = pixels.shape[1:] == self.shape[1:] and len(pixels) == 1  # else it is refused, or all are written anew
        return (np.broadcast_to(pixels, self.shape) if fits else pixels).tobytes()

    def finish(self, rows: int) -> None:
        header = _npy_header((rows, *self.shape))
        assert len(header) == self._head()  # NumPy leaves room for the first number
        with self.path.open("r+b") as file:
            file.write(header)
        super().finish(rows)

    def digest(self, rows: range) -> str:
        return hashlib.sha256(self.pixels(rows).data).hexdigest()

    def pixels(self, rows: range) -> np.ndarray:
        size = int(np.prod(self.shape))
        found = np.empty((len(rows), *self.shape), dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._head() + rows.start * size)
            there = 0
            while there < found.nbytes and (read := file.readinto(found.data.cast("B")[there:])):
                there += read
        if there < found.nbytes:
            raise _not_whole(self.path)
        return found


class JpegFile(ImageFile):
    """JPEG files end to end, at 4:4:4, and their offsets."""

    names = (PACK, _OFFSETS, _SIZES)

    def __init__(self, folder: Path, shape: tuple[int, ...], quality: int | None, workers: int) -> None:
        super().__init__(folder, shape)
        self._quality, self._workers = quality, workers
        self._sizes: BinaryIO | None = None
        self._records: PackedRecords | None = None

    def begin(self, rows: int, end: int) -> None:
        super().begin(rows, end)
        self._sizes = _reopened(self.folder / _SIZES, 8 * rows, rows > 0)

    def append(self, raw: bytes) -> None:
        assert self._sizes is not None
        super().append(raw)
        self._sizes.write(len(raw).to_bytes(8, "little"))

    def flush(self) -> str:
        assert self._sizes is not None
        self._sizes.flush()
        os.fsync(self._sizes.fileno())
        return super().flush()

    def close(self) -> None:
        super().close()
        if self._sizes is not None:
            self._sizes.close()

    def encode(self, pixels: np.ndarray) -> bytes:
        from PIL import Image

        raw = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
        picture.save(raw, "JPEG", quality=self._quality, subsampling=0)
        return raw.getvalue()

    def finish(self, rows: int) -> None:
        sizes = np.fromfile(self.folder / _SIZES, dtype="<i8", count=rows)
        if len(sizes) != rows or (sizes < 0).any() or sizes.sum() != self.path.stat().st_size:
            raise _not_whole(self.folder / _SIZES)
        np.save(self.folder / _OFFSETS, np.concatenate([[0], sizes.cumsum()]))
        sync_file(self.folder / _OFFSETS)
        super().finish(rows)

    def digest(self, rows: range) -> str:
        start, end = self._open().offsets[[rows.start, rows.stop]].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(end - start)).hexdigest()

    def pixels(self, rows: range) -> np.ndarray:
        return np.stack(list(in_order(partial(decode_jpeg, self._open(), self.shape), rows, self._workers)))

    def _open(self) -> PackedRecords:
        if self._records is None:
            self._records = PackedRecords(self.path, lambda i: f"{self.path}: image {i}", torch.empty(0), [])
        return self._records


def _reopened(path: Path, end: int, begun: bool) -> BinaryIO:
    """Open a file to append at this byte; what comes after it is cut off. A file that was begun must reach it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    if begun and os.fstat(file.fileno()).st_size < end:  # `truncate` would fill it with zeros
        file.close()
        raise _not_whole(path)
    file.truncate(end)
    file.seek(end)
    return file


def _not_whole(path: Path) -> BadInput:
    return BadInput(f"{shown(path)}: is not what was written; remove {shown(path.parent)}, and prepare it again")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return raw.getvalue()
