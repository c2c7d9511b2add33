"""Sets that `dsd-lab prepare` wrote: images as they are trained on, in one file that is read at random.

The array form is a NumPy array `images.npy`, [N, C, H, W] uint8, mapped into memory: reading an image copies it. The JPEG
form is `jpegs.pack`, image files laid end to end, with their offsets in `jpegs.npy`. `labels.npy` [N] int64 and
`held_out.npy` [N] bool belong to either; `prepared.json` says what they are, and is written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from dsd_lab.core.data.assembly import RESIDENT_BYTES
from dsd_lab.core.data.dataset import DataSet, count_classes, data_set
from dsd_lab.core.data.decoding import in_channels
from dsd_lab.core.data.records import PackedRecords, shown
from dsd_lab.core.data.splits import Images, StreamedImages
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import check_plain, read_json
from dsd_lab.files.image_files import DamagedImage, open_image
from dsd_lab.specs.data import PREPARED_MANIFEST

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

MANIFEST, JOURNAL = PREPARED_MANIFEST, "progress.jsonl"
IMAGES, PACK, LABELS, HELD_OUT = "images.npy", "jpegs.pack", "labels.npy", "held_out.npy"
FIELDS = ("size", "crop", "background", "image_column", "label_column")
"""Fields of `data` that decide which pixels and labels are read from the same files."""


class Manifest(BaseModel):
    """What a prepared set is: `prepared.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal[1] = 1
    form: Literal["array", "jpeg"]
    quality: int | None
    """Of the JPEG form."""
    key: str
    """Of the files and settings that it was made from."""
    name: str
    """Declared name of the data set that was read."""
    source: str
    fields: dict[str, Any]
    holdout: float | None
    """Fraction that is held out; None where the source has a split of its own."""
    damaged: list[str]
    """What was left out, each with its reason."""
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """As of `DataSet`; in the array form that of the source."""
    shape: list[int] = Field(min_length=3, max_length=3)
    count: int = Field(ge=1)
    class_names: list[str]
    holdout_from: str
    notes: list[str]
    levels: list[list[int]]
    """How often each level occurs in the training images, by channel."""
    block: int = Field(ge=1)
    """Images that one hash is of."""
    blocks: list[str]
    """SHA-256 of the images, block by block."""
    index: str
    """SHA-256 of labels and of which images are held out."""
    pillow: str

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        if min(self.shape) < 1 or [len(levels) for levels in self.levels] != [256] * self.shape[0]:
            raise ValueError("levels: not 256 numbers for each channel")
        if len(self.blocks) != -(-self.count // self.block):
            raise ValueError(f"blocks: {len(self.blocks)} hashes for {self.count} images in blocks of {self.block}")
        return self


def read_manifest(folder: Path) -> Manifest:
    """What a prepared set is.

    Raises:
        BadInput: there is none, it is not finished, or its manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(read_json(path))
    except FileNotFoundError:
        if (folder / JOURNAL).exists():
            raise BadInput(f"{shown(folder)}: is not finished; run the same `dsd-lab prepare` again") from None
        raise BadInput(f"{shown(folder)}: holds no {MANIFEST}, which `dsd-lab prepare` writes") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{shown(path)}: damaged: {shown(where)}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise BadInput(f"{shown(path)}: damaged: {shown(str(reason))[:300]}") from None


def load_prepared(spec: Data, cache: Path | None) -> DataSet:
    """A prepared set: mapped into memory, or copied there where it is small, and then hashed.

    The fingerprint of a mapped set is that of its manifest; `prepare` hashes its images when it is run again.

    Raises:
        BadInput: it was prepared with other settings than the spec's, or its files are damaged.
    """
    assert spec.path is not None
    folder = Path(spec.path)
    found = read_manifest(folder)
    _check_fields(spec, folder, found)
    labels, held, images = open_set(folder, found)
    rows = [np.flatnonzero(mask) for mask in (~held, held)]
    if not all(map(len, rows)):
        raise BadInput(
            f"{shown(folder / HELD_OUT)}: damaged: no image is {'held out' if len(rows[0]) else 'trained on'}"
        )
    shape: tuple[int, int, int] = tuple(found.shape)  # type: ignore[assignment]
    levels = torch.tensor(found.levels)
    train, holdout = (
        StreamedImages(
            partial(_row, images, own),
            torch.from_numpy(labels[own]),
            shape,
            levels,
            spec.workers,
            partial(_gathered, images, own) if isinstance(images, np.ndarray) else None,
        )
        for own in rows
    )
    about = (tuple(found.class_names), tuple(found.damaged), found.holdout_from, tuple(found.notes))
    if spec.memory == "stream" or (spec.memory == "auto" and found.count * np.prod(shape) > RESIDENT_BYTES):
        return DataSet(train, holdout, count_classes(train.labels, holdout.labels), found.fingerprint, *about)
    first, second = (Images(part.bytes_at(torch.arange(len(part))), part.labels) for part in (train, holdout))
    made = data_set(first, second, *about)
    if made.fingerprint != found.fingerprint:
        raise BadInput(
            f"{shown(folder)}: its images have another fingerprint than {MANIFEST} says; run the same `dsd-lab prepare` again, which names what is damaged"
        )
    return made


def prepared_fields(folder: Path) -> dict[str, Any]:
    """Fields of `data` that train on a prepared set, but for its name."""
    found = read_manifest(folder)
    share = {} if found.holdout is None else {"holdout": found.holdout}
    skip = {"damaged": "skip"} if found.damaged else {}
    fields = {name: value for name, value in found.fields.items() if name in FIELDS}
    return {"source": "prepared", "path": str(folder)} | fields | share | skip


def _check_fields(spec: Data, folder: Path, found: Manifest) -> None:
    wanted = dict(found.fields) | ({} if found.holdout is None else {"holdout": found.holdout})
    for name, value in wanted.items():
        here = getattr(spec, name, None)
        if here != value:
            raise BadInput(
                f"data.{name}: {_said(here)}, and {shown(folder)} was prepared with {_said(value)}; write data.{name}: {_said(value)}, or prepare it again"
            )
    if found.damaged and spec.damaged != "skip":
        raise BadInput(
            f"data.damaged: {spec.damaged}, and {shown(folder)} was prepared without {len(found.damaged)} damaged images; write data.damaged: skip"
        )
    if found.form == "jpeg":
        from PIL import __version__ as pillow

        if pillow != found.pillow:
            raise BadInput(
                f"{shown(folder)}: its fingerprint was taken with Pillow {shown(found.pillow)}, and here is {pillow}; run the same `dsd-lab prepare` again, which takes it anew"
            )


def index_of(labels: np.ndarray, held: np.ndarray) -> str:
    """SHA-256 of labels [N] int64 and of which images are held out [N] bool."""
    return hashlib.sha256(labels.tobytes() + held.tobytes()).hexdigest()


def _said(value: Any) -> str:
    return "null" if value is None else shown(str(value))


def read_array(path: Path, shape: tuple[int, ...], kind: str, mapped: bool = False) -> np.ndarray:
    """An array of a prepared set.

    Raises:
        BadInput: it is damaged, or of another shape.
    """
    try:
        check_plain(path)
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except Exception as error:  # a damaged header ends with any of them, TokenError and MemoryError too
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise BadInput(f"{shown(path)}: damaged: {shown(str(reason))[:300]}") from None
    if found.shape != shape or found.dtype != kind or not found.flags.c_contiguous:
        raise BadInput(
            f"{shown(path)}: damaged: holds {list(found.shape)} {found.dtype}, and {MANIFEST} says {list(shape)} {kind}"
        )
    if isinstance(found, np.memmap) and found.offset + found.nbytes != path.stat().st_size:
        raise BadInput(f"{shown(path)}: damaged: its header and images are not as long as the file")
    return found.view(np.ndarray)


def open_set(folder: Path, found: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray | Callable[[int], np.ndarray]]:
    """Labels [N] int64, which images are held out [N] bool, and all images [N, C, H, W] uint8 or what gives image i.

    Checks everything but the images' pixels.

    Raises:
        BadInput: a file is missing, damaged, or of another size than the manifest says; the message names it.
    """
    labels, held = (
        read_array(folder / name, (found.count,), kind) for name, kind in ((LABELS, "int64"), (HELD_OUT, "bool"))
    )
    if index_of(labels, held) != found.index:
        raise BadInput(
            f"{shown(folder)}: {LABELS} or {HELD_OUT} is not what was written; remove the folder, and look at its disk"
        )
    shape = tuple(found.shape)
    if found.form == "array":
        return labels, held, read_array(folder / IMAGES, (found.count, *shape), "uint8", mapped=True)
    path = folder / PACK
    offsets = read_array(path.with_suffix(".npy"), (found.count + 1,), "int64")
    try:
        check_plain(path)
        whole = offsets[0] == 0 and offsets[-1] == path.stat().st_size and bool((np.diff(offsets) >= 0).all())
        records = PackedRecords(path, lambda i: f"{shown(path)}: image {i}", torch.empty(0), [])
    except OSError as error:
        raise BadInput(f"{shown(path)}: damaged: {shown(error.strerror or str(error))[:300]}") from None
    if not whole:
        raise BadInput(f"{shown(path)}: damaged: its size is not what {path.with_suffix('.npy').name} says")
    return labels, held, partial(decode_jpeg, records, shape)


def decode_jpeg(records: PackedRecords, shape: tuple[int, ...], i: int) -> np.ndarray:
    """Image i of the JPEG form, [C, H, W] uint8.

    Raises:
        BadInput: it is damaged.
    """
    where, read = records.item(i)
    try:
        pixels = in_channels(np.asarray(open_image(read() or b"", ("JPEG",))), shape[0])
    except DamagedImage as damage:
        raise BadInput(f"{where}: damaged image: {damage}") from None
    if pixels.shape != shape:
        raise BadInput(f"{where}: {list(pixels.shape)} pixels, and {MANIFEST} says {list(shape)}")
    return pixels


def _row(images: np.ndarray | Callable[[int], np.ndarray], rows: np.ndarray, i: int) -> np.ndarray:
    number = int(rows[i])
    found: np.ndarray = images[number] if isinstance(images, np.ndarray) else images(number)
    return found


def _gathered(images: np.ndarray, rows: np.ndarray, pixels: Tensor, indices: Tensor) -> None:
    np.take(images, rows[indices.numpy()], axis=0, out=pixels.numpy(), mode="clip")  # "raise" would copy twice
