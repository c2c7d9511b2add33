"""MNIST's file format, which its family shares."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dsd_lab.core.data.dataset import DataSet, data_set
from dsd_lab.core.data.decoding import framed_arrays
from dsd_lab.core.data.splits import Images
from dsd_lab.errors import BadInput

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data


def load_idx(spec: Data, cache: Path | None) -> DataSet:
    """MNIST's file format, gzipped or not, under MNIST's file names."""
    assert spec.path is not None
    folder = Path(spec.path)
    parts = []
    for prefix in ("train", "t10k"):
        pixels = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
        if not len(pixels):
            raise BadInput(f"{folder}: the {prefix} files hold no images")
        if len(pixels) != len(labels):
            raise BadInput(f"{folder}: {prefix} has {len(pixels)} images but {len(labels)} labels")
        pixels = framed_arrays(pixels, spec)
        parts.append(Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))))
    return data_set(parts[0], parts[1])


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise BadInput(f"{folder / name}[.gz]: no such file; an idx data set has MNIST's four files") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: damaged: {error}") from None
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise BadInput(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != int(np.prod(shape)):
        raise BadInput(
            f"{path}: damaged: {len(raw) - header} bytes of data, {int(np.prod(shape))} expected for {shape}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy()
