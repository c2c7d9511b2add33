"""Measures how fast images are read: the same images as files in folders, in a parquet file, and prepared.

Batches are drawn, prefetched and read as in training, by several threads. Files that were just written are in the page
cache, so the figures measure decoding and copying, not the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dsd_lab.bench.clock import spread
from dsd_lab.core.data import BATCHES_AHEAD, FINDERS, Split, load_data
from dsd_lab.core.data.records import Item, StoredRecords
from dsd_lab.core.preparing.write import prepare
from dsd_lab.core.randomness import batch_indices
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import size_of
from dsd_lab.specs.trial import Data

FORMS = ("folder", "parquet", "prepared", "prepared, JPEG")
THREADS = (1, 2, 4)
IMAGES, QUALITY = 2048, 95
"""Maximum number of copied images, and the quality of the JPEG form."""
_JPEG = b"\xff\xd8"
_SECONDS = 1.0
"""Minimum duration of a repeat."""


def reading_speeds(
    data: Data, scratch: Path, repeats: int, batch: int, on_form: Callable[[str], object] | None = None
) -> list[dict[str, Any]]:
    """Images per second for every form and number of threads.

    Args:
        data: source of the images, and how they are resized and cropped.
        scratch: empty folder for copies of the images.
        repeats: repeats of every measurement.
        batch: images per batch.
        on_form: called with one line about each form before it is measured.

    Raises:
        BadInput: the source stays in memory, so nothing is read during training.
    """
    if data.source == "prepared":
        raise BadInput(f"{data.path}: is a prepared set; name its source, whose images are then read in every form")
    if data.source not in FINDERS:
        raise BadInput(f"data.source: {data.source!r} is read once and stays in memory; there is no reading to measure")
    raws, labels = _sample(data, IMAGES)
    fields = data.model_dump(include={"size", "crop", "background", "damaged", "holdout"}) | {"memory": "stream"}
    folder = Data(source="folder", path=str(_as_folder(scratch / "folder", raws, labels)), **fields)
    found = []
    for form in FORMS:
        if on_form is not None:
            on_form(f"reading {len(raws):,} images as: {form}")
        place = scratch / form.replace(", ", "-").lower()
        spec = folder
        if form == "parquet":
            spec = Data(source="parquet", path=str(_as_parquet(place, raws, labels)), **fields)
        elif form != "folder":
            prepare(folder, "bench", place, QUALITY if "JPEG" in form else None, max(THREADS))
            spec = folder.model_copy(update={"source": "prepared", "path": str(place)})
        speeds = {}
        for threads in THREADS:
            made = load_data(spec.model_copy(update={"workers": threads}))
            _read(made.train, 2, batch)
            speeds[threads] = spread([_speed(made.train, batch) for _ in range(repeats)])
            shape = made.train.shape
        each = size_of(place) / len(raws)
        found.append(
            {
                "form": form,
                "images": len(raws),
                "shape": list(shape),
                "bytes_per_image": each,
                "images_per_second": speeds,
            }
        )
    return found


def _sample(data: Data, count: int) -> tuple[list[bytes], list[int]]:
    """Encoded training images and their classes; evenly spread if the source can be read in any order."""
    train = FINDERS[data.source](data).train
    chosen: Sequence[int] = torch.linspace(0, len(train) - 1, min(count, len(train))).round().long().tolist()
    items: Any = train.items(chosen) if isinstance(train, StoredRecords) else islice(train.items(), len(chosen))
    numbers = chosen if isinstance(train, StoredRecords) else range(len(chosen))
    found = [(_bytes(item), int(train.labels[number])) for item, number in zip(items, numbers, strict=True)]
    kept = [(raw, label) for raw, label in found if raw]
    return [raw for raw, _ in kept], [label for _, label in kept]


def _bytes(item: Item) -> bytes:
    try:
        return item[1]() or b""
    except OSError:  # a damaged one
        return b""


def _as_folder(place: Path, raws: list[bytes], labels: list[int]) -> Path:
    for number, (raw, label) in enumerate(zip(raws, labels, strict=True)):
        folder = place / f"{label:06}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "jpg" if raw.startswith(_JPEG) else "png"  # decoders identify the format by the content
        (folder / f"{number:08}.{suffix}").write_bytes(raw)
    return place


def _as_parquet(place: Path, raws: list[bytes], labels: list[int]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    place.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": raw, "path": str(number)} for number, raw in enumerate(raws)], kind)
    known = sorted(set(labels))
    numbers = pa.array([known.index(label) for label in labels], pa.int64())
    pyarrow.parquet.write_table(
        pa.table({"image": images, "label": numbers}), place / "train.parquet", row_group_size=100
    )
    return place


def _read(split: Split, steps: int, batch: int) -> int:
    """Read batches as in training; returns the number of images."""
    size = min(batch, len(split))
    drawn = [batch_indices(0, step, size, len(split)) for step in range(steps)]
    for step, indices in enumerate(drawn):
        split.bytes_at(indices)
        split.prefetch(drawn[step + 1 : step + 1 + BATCHES_AHEAD])
    split.prefetch([])
    return steps * size


def _speed(split: Split, batch: int) -> float:
    steps = 4
    while True:
        began = time.perf_counter()
        count = _read(split, steps, batch)
        taken = time.perf_counter() - began
        if taken >= _SECONDS:
            return count / taken
        steps = max(2 * steps, min(64 * steps, round(1.2 * steps * _SECONDS / max(taken, 1e-6))))
