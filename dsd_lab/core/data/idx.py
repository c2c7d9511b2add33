"""The idx file format of MNIST, EMNIST and QMNIST."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from dsd_lab.core.data.dataset import DataSet, data_set
from dsd_lab.core.data.decoding import framed_arrays
from dsd_lab.core.data.idx_files import IdxSet, class_names, idx_set
from dsd_lab.core.data.records import numbered
from dsd_lab.core.data.splits import Images
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import open_plain

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_INT = (0x0C, ">i4")
"""Type code and dtype of QMNIST's labels."""
MAX_BYTES = 2 * 2**30
"""Maximum size of the array in an idx file, which always stays in memory."""
_CHUNK = 2**20


def load_idx(spec: Data, cache: Path | None) -> DataSet:
    """Read idx files, gzipped or not, with the file names of MNIST, EMNIST or QMNIST.

    EMNIST's images are transposed to be upright. Classes are the labels that occur, in ascending order; EMNIST's
    classes have the names of their characters.
    """
    assert spec.path is not None
    folder = Path(spec.path)
    there = idx_set(folder)
    parts: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for split, usual in (("train", "train"), ("test", "t10k")):
        pixels = _read_idx(*_place(there, folder, split, usual, "images"), 3)
        numbers = _read_labels(*_place(there, folder, split, usual, "labels"))
        if not len(pixels):
            raise BadInput(f"{folder}: the {usual} files hold no images")
        if len(pixels) != len(numbers):
            raise BadInput(f"{folder}: {usual} has {len(pixels)} images but {len(numbers)} labels")
        parts.append(framed_arrays(pixels.transpose(0, 2, 1).copy() if there.transposed else pixels, spec))
        labels.append(numbers)
    found, known = numbered(str(folder), labels[0], labels[1])
    names = class_names(there)
    first, second = (Images(torch.from_numpy(p)[:, None], y) for p, y in zip(parts, found, strict=True))
    origin = there.files["test", "images"].name
    return data_set(first, second, tuple(names.get(n, str(n)) for n in known), holdout_from=origin)


def _place(there: IdxSet, folder: Path, split: str, usual: str, what: str) -> tuple[Path, str]:
    """Folder and name of a file, without `.gz`; for a missing file, the name that MNIST would use."""
    path = there.files.get((split, what))
    if path is None:
        prefix = f"{there.name}-" if there.name else ""
        beside = next(iter(there.files.values())).parent if there.files else folder
        return beside, f"{prefix}{usual}-{what}-idx{3 if what == 'images' else 1}-ubyte"
    return path.parent, path.name.removesuffix(".gz")


def _read_labels(folder: Path, name: str) -> np.ndarray:
    """Labels [N]; QMNIST has eight numbers per image, and the first is the class."""
    if "idx2" in name.lower():
        return _read_idx(folder, name, 2, _INT)[:, 0]
    return _read_idx(folder, name, 1)


def _read_idx(folder: Path, name: str, dimensions: int, kind: tuple[int, str] = (8, "u1")) -> np.ndarray:
    path = folder / name if os.path.lexists(folder / name) else folder / f"{name}.gz"
    try:
        with open_plain(path) as raw:
            if path.suffix != ".gz":
                return _content(raw, path, dimensions, kind)
            with gzip.open(raw) as unpacked:
                return _content(unpacked, path, dimensions, kind)
    except FileNotFoundError:
        raise BadInput(f"{folder / name}[.gz]: no such file; an idx data set has MNIST's four files") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: damaged: {(isinstance(error, OSError) and error.strerror) or error}") from None


def _content(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, kind: tuple[int, str]) -> np.ndarray:
    """The array in a file. Unpacking stops at the size in the header, which is at most `MAX_BYTES`."""
    code, dtype = kind
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, code, dimensions)):
        what = "unsigned bytes" if kind != _INT else "whole numbers of 32 bits"
        raise BadInput(f"{path}: not an idx file of {what} with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if expected > MAX_BYTES:
        raise BadInput(f"{path}: declares {expected:,} bytes for {shape}; an idx file may have {MAX_BYTES:,}")
    found = np.empty(expected, dtype=np.uint8)
    there, view = 0, found.data
    while there < expected and (read := file.readinto(view[there : there + _CHUNK])):  # type: ignore[union-attr]
        there += read
    if there < expected or file.read(1):
        have = f"{there}" if there < expected else f"more than {expected}"
        raise BadInput(f"{path}: damaged: {have} bytes of data, {expected} expected for {shape}")
    return found.view(dtype).reshape(shape)
