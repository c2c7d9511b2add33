"""What is prepared: the images of any source, in the order of their files, decoded as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dsd_lab.core.data import FINDERS, load_data
from dsd_lab.core.data.assembly import Found
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.decoding import attempt, in_channels, in_order
from dsd_lab.core.data.prepared import FIELDS
from dsd_lab.core.data.records import Item, Records, StoredRecords, key_of, place_of
from dsd_lab.files.image_files import DamagedImage

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_VERSION = 1
"""Part of a set's key; raised when what is written changes."""
Encode = Callable[[np.ndarray], bytes]
Looked = tuple[str, "tuple[int, ...] | DamagedImage", bytes]
"""What messages call an image, its shape [C, H, W] or what is wrong with it, and what is written of it."""


@dataclass(frozen=True)
class Source:
    """What is prepared: images in an order, with labels, decoded as they are asked for."""

    labels: list[Tensor]
    """Of the training images, and of the held-out ones where the source has a split of its own."""
    key: str
    class_names: tuple[str, ...]
    holdout_from: str
    notes: tuple[str, ...]
    records: tuple[Records, ...] = ()
    loaded: DataSet | None = None
    """Of sources that are read as a whole."""

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def looked(self, spec: Data, start: int, workers: int, encode: Encode) -> Generator[Looked]:
        """All images from number `start` on, in order, decoded and encoded by several threads."""
        return in_order(partial(_look, spec, encode), self._items(spec, start), workers)

    def _items(self, spec: Data, start: int) -> Iterator[Item | tuple[str, np.ndarray]]:
        if self.loaded is not None:
            parts = [self.loaded.train, self.loaded.holdout]
            arrays = (array for part in parts for pixels, _ in part.batches(256) for array in pixels.numpy())
            yield from ((place_of(spec), array) for array in islice(arrays, start, None))
        for part in self.records:
            skipped = min(start, len(part))
            start -= skipped
            if isinstance(part, StoredRecords):
                yield from part.items(range(skipped, len(part)))
            else:
                yield from islice(part.items(), skipped, None)


def _look(spec: Data, encode: Encode, item: Item | tuple[str, np.ndarray]) -> Looked:
    where, given = item
    array = given if isinstance(given, np.ndarray) else attempt(spec, (where, given))[1]
    if isinstance(array, DamagedImage):
        return where, array, b""
    if not isinstance(given, np.ndarray):
        array = in_channels(array, 1 if array.ndim == 2 else 3)
    return where, array.shape, encode(array)


def source_to_prepare(spec: Data, jpeg: int | None) -> Source:
    """Find the images of a data set.

    Args:
        spec: what is read, and how it is resized, cropped and split.
        jpeg: quality of the JPEG form; None: the array form.

    Raises:
        BadInput: as `load_data`, as far as it is seen before images are decoded.
    """
    how = [_VERSION, jpeg, spec.model_dump(include={*FIELDS, "holdout", "damaged"})]
    find = FINDERS.get(spec.source)
    if find is None:
        made = load_data(spec)
        labels = [made.train.labels, made.holdout.labels]
        key = key_of([made.fingerprint], *how)
        return Source(labels, key, made.class_names, made.holdout_from, made.notes, loaded=made)
    found: Found = find(spec)
    records = [part for part in (found.train, found.holdout) if part is not None]
    root = (spec.path or "").rstrip("/")  # of a zip file, which is the only path of its stamp, nothing is left
    stamp = [
        (path.removeprefix(root).removeprefix("/"), size, time) for part in records for path, size, time in part.stamp()
    ]
    labels = [part.labels for part in records]
    hashes = [hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in labels]
    return Source(
        labels, key_of(stamp, hashes, *how), found.class_names, found.holdout_from, found.notes, tuple(records)
    )
