"""Image data sets: resident in memory as uint8, split into training and held-out images.

A new data set is one function that returns a `DataSet` and one row of `SOURCES`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsd_lab.core.randomness import generator
from dsd_lab.errors import BadInput

if TYPE_CHECKING:
    from dsd_lab.specs.fields import Data


@dataclass(frozen=True)
class Images:
    """Pixels [N, C, H, W] uint8 and labels [N] int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images as float [B, C, H, W] in [-1, 1] and labels [B], on a device."""
        indices = indices.to(self.pixels.device)
        pixels = self.pixels[indices].to(device, non_blocking=True)
        return pixels.float() / 127.5 - 1, self.labels[indices].to(device, non_blocking=True)


@dataclass(frozen=True)
class DataSet:
    """Training and held-out images; `fingerprint` is a SHA-256 of all pixels and labels."""

    train: Images
    holdout: Images
    classes: int
    fingerprint: str

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.pixels.shape[2]


def load_data(spec: Data) -> DataSet:
    """Load the data set that a spec names.

    Raises:
        BadInput: files are missing or damaged, or images differ in size; the message names them.
    """
    return SOURCES[spec.source](spec)


def _data_set(train: Images, holdout: Images) -> DataSet:
    digest = hashlib.sha256()
    for part in (train, holdout):
        digest.update(repr(tuple(part.pixels.shape)).encode())
        digest.update(part.pixels.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    classes = int(torch.cat([train.labels, holdout.labels]).max()) + 1
    return DataSet(train, holdout, classes, digest.hexdigest())


def _split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Hold out a fraction of every class, chosen once for all seeds."""
    order = torch.randperm(len(images), generator=generator(0, "holdout"))
    held = torch.zeros(len(images), dtype=torch.bool)
    for label in images.labels.unique():
        members = order[images.labels[order] == label]
        held[members[: max(1, round(fraction * len(members)))]] = True
    return Images(images.pixels[~held], images.labels[~held]), Images(images.pixels[held], images.labels[held])


def _digits(spec: Data) -> DataSet:
    """scikit-learn's digits: 1,797 images of 8x8 with 17 grey levels (UCI optdigits' test set)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    return _data_set(*_split(Images(pixels, torch.from_numpy(bunch.target.astype(np.int64))), spec.holdout))


def _idx(spec: Data) -> DataSet:
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
        parts.append(Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64))))
    return _data_set(*parts)


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


def _parquet(spec: Data) -> DataSet:
    """The Hugging Face image layout: column `image` = {bytes, path}, column `label`; `test*.parquet` is held out."""
    assert spec.path is not None
    folder = Path(spec.path)
    files = sorted(folder.glob("train*.parquet"))
    if not files:
        raise BadInput(f"{folder}: no train*.parquet in this folder")
    train = _read_parquet(files)
    tests = sorted(folder.glob("test*.parquet")) or sorted(folder.glob("validation*.parquet"))
    if not tests:
        return _data_set(*_split(train, spec.holdout))
    holdout = _read_parquet(tests)
    if holdout.pixels.shape[1:] != train.pixels.shape[1:]:
        raise BadInput(
            f"{folder}: training images are {list(train.pixels.shape[1:])}, held-out images {list(holdout.pixels.shape[1:])}"
        )
    return _data_set(train, holdout)


def _read_parquet(files: list[Path]) -> Images:
    import pyarrow.parquet

    pictures: list[tuple[str, np.ndarray]] = []
    labels: list[int] = []
    for path in files:
        try:
            table = pyarrow.parquet.read_table(path, columns=["image", "label"])
        except (OSError, pyarrow.ArrowException, KeyError) as error:
            raise BadInput(
                f"{path}: not a parquet file with the columns image and label: {str(error).splitlines()[0]}"
            ) from None
        if not len(table):
            raise BadInput(f"{path}: holds no images")
        if not pyarrow.types.is_integer(table.schema.field("label").type):
            raise BadInput(f"{path}: the labels are {table.schema.field('label').type}, not whole numbers")
        for row, (image, label) in enumerate(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)):
            where = f"{path}: row {row} ({image and image.get('path')})"
            if label is None or label < 0:
                raise BadInput(f"{where}: the label {label} is no class; classes are numbered from 0")
            pictures.append((where, _decoded(image and image["bytes"], where)))
            labels.append(label)
    colour = any(array.ndim == 3 for _, array in pictures)  # sets in colour, such as ImageNet, hold grey images too
    arrays = [np.repeat(a[..., None], 3, axis=2) if colour and a.ndim == 2 else a for _, a in pictures]
    for (where, _), array in zip(pictures, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise BadInput(f"{where}: {array.shape} pixels where others have {arrays[0].shape}")
    stacked = np.stack(arrays)
    stacked = stacked.transpose(0, 3, 1, 2) if colour else stacked[:, None]
    return Images(torch.from_numpy(np.ascontiguousarray(stacked)), torch.tensor(labels, dtype=torch.int64))


def _decoded(raw: bytes | None, where: str) -> np.ndarray:
    """Pixels [H, W] of a grey image, [H, W, 3] of any other."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(raw))  # type: ignore[arg-type]
        deep = picture.mode.startswith(("I", "F"))
        array = np.asarray(picture if picture.mode == "L" or deep else picture.convert("RGB"))
    except (OSError, TypeError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise BadInput(f"{where}: damaged image: {error}") from None
    if deep:
        raise BadInput(f"{where}: a picture of mode {picture.mode}; convert it to 8 bits a channel")
    return array


SOURCES: dict[str, Callable[[Data], DataSet]] = {"digits": _digits, "idx": _idx, "parquet": _parquet}
