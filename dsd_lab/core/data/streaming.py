"""Streaming: a survey decodes every image once; training then decodes images when it needs them.

The survey finds damaged images, checks that the others have one shape, and computes the histogram of pixel values and
the fingerprint that the same images would have in memory. It is cached under the relative paths and the content of
the files, so moving the files or changing their times leaves it valid.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.data.dataset import DataSet, check_classes, count_classes, held_out
from dsd_lab.core.data.decoding import attempt, decoded, in_channels, in_order, mismatch, refusal
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import Item, Records, StoredRecords, key_of, place_of
from dsd_lab.core.data.splits import StreamedImages
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.files.image_files import DamagedImage
from dsd_lab.files.index import content_digest, listing_of
from dsd_lab.files.locks import locked

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_VERSION = 2
"""Part of a survey's file name; raised when its content changes."""
_REPORT_EVERY = 256
"""Images between two progress reports."""
Counted = tuple[str, np.ndarray | DamagedImage, np.ndarray]
"""The name of an image in messages, its pixels or the error, and the histogram of its pixel values [C, 256]."""
Part = tuple[StoredRecords, list[int]]
"""Records, and the indices of those that belong to a split."""


@dataclass(frozen=True)
class Survey:
    """Result of a survey."""

    shape: tuple[int, int, int]
    levels: list[list[int]]
    """Histogram of the training images' pixel values per channel, [C, 256]."""
    fingerprint: str
    damaged: list[dict[str, str]]
    """For training and for held-out records: index -> reason."""


def streamed(
    spec: Data, train: Records, holdout: Records | None, class_names: tuple[str, ...], cache: Path | None
) -> DataSet:
    """A data set that stays on disk.

    Raises:
        BadInput: an image is damaged, or its size differs from the others'; the message names it.
        NoResources: the disk has no space for the unpacked rows of parquet files.
    """
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    records = [part.stored(cache) for part in (train, holdout) if part is not None]
    found = _cached_survey(spec, records, cache)
    parts = _parts(spec, records, found.damaged)
    labels = [part.labels[torch.tensor(numbers)] for part, numbers in parts]
    kept = [part.labels[torch.tensor(_undamaged(part, bad))] for part, bad in zip(records, found.damaged, strict=True)]
    check_classes(train.labels, kept[0], class_names)
    levels = torch.tensor(found.levels)
    splits = [
        StreamedImages(partial(_image, spec, found.shape, part), own, found.shape, levels, spec.workers)
        for part, own in zip(parts, labels, strict=True)
    ]
    damaged = tuple(reason for bad in found.damaged for reason in bad.values())
    return DataSet(splits[0], splits[1], count_classes(*labels), found.fingerprint, class_names, damaged)


def _image(spec: Data, shape: tuple[int, int, int], part: Part, i: int) -> np.ndarray:
    records, numbers = part
    where, read = records.item(numbers[i])
    pixels = in_channels(decoded(read, where, spec), shape[0])
    if pixels.shape != shape:
        raise BadInput(f"{where}: {pixels.shape} pixels where the survey of the data found {shape}; it has changed")
    return pixels


def _undamaged(records: StoredRecords, bad: dict[str, str]) -> list[int]:
    return [i for i in range(len(records)) if str(i) not in bad]


def _parts(spec: Data, records: Sequence[StoredRecords], damaged: list[dict[str, str]]) -> list[Part]:
    """Training and held-out records without the damaged ones, split as in memory."""
    undamaged = [_undamaged(part, bad) for part, bad in zip(records, damaged, strict=True)]
    if not all(undamaged):
        raise BadInput(f"{place_of(spec)}: every image is damaged")
    if len(records) == 2:
        return list(zip(records, undamaged, strict=True))
    held = held_out(records[0].labels[undamaged[0]], spec.holdout)
    numbers = torch.tensor(undamaged[0])
    return [(records[0], numbers[~held].tolist()), (records[0], numbers[held].tolist())]


# -- The survey ------------------------------------------------------------------------------------


def _cached_survey(spec: Data, records: Sequence[StoredRecords], cache: Path | None) -> Survey:
    if cache is None:
        return survey(spec, records)
    from PIL import __version__ as pillow

    fields = spec.model_dump(
        include={"source", "holdout", "size", "crop", "damaged", "background", "image_column", "label_column"}
    )
    labels = [hashlib.sha256(part.labels.numpy().tobytes()).hexdigest() for part in records]
    path = cache / f"survey-{key_of(_content(spec, records, cache), _VERSION, pillow, fields, labels)}.json"
    with locked(path.with_suffix(".lock")):
        known = read_cache(path)
        with contextlib.suppress(KeyError, TypeError):  # there is none yet, or what a power cut has left of one
            return Survey(**{**known, "shape": tuple(known["shape"])})
        found = survey(spec, records)
        write_json(path, asdict(found))
    return found


def _content(spec: Data, records: Sequence[StoredRecords], cache: Path) -> list[Any]:
    """Identifies the images by their order and the content of all files, wherever these are stored."""
    stamps = [stamp for part in records for stamp in part.stamp()]
    if spec.path is None:
        return stamps
    try:
        digest = content_digest(listing_of(Path(spec.path)), cache, partial(tell, "files hashed"))
    except OSError:  # decoding reports the file
        return stamps
    root = spec.path.rstrip("/") + "/"
    return [
        digest,
        hashlib.sha256(
            "\0".join(path.removeprefix(root) for path, _, _ in stamps).encode(errors="surrogateescape")
        ).hexdigest(),
    ]


def survey(spec: Data, records: Sequence[StoredRecords]) -> Survey:
    """Decode every image once, or more often.

    The hash begins with the number of images and channels, which are known only after the last image. The pass is
    therefore repeated after a damaged image or the first colour image.
    """
    damaged: list[dict[str, str]] = [{} for _ in records]
    channels = 1
    while True:
        looked = _SurveyPass(spec, damaged, channels, sum(len(part) for part in records))
        parts = _parts(spec, records, damaged)
        for number, part in enumerate(parts):
            looked.read_split(number, *part)
            if looked.channels > channels:
                break
        if looked.channels == channels and not looked.found:
            return Survey(looked.shape, looked.levels.tolist(), looked.digest.hexdigest(), damaged)
        channels = looked.channels
        for which, i, reason in looked.found:
            damaged[which if len(records) == 2 else 0][str(i)] = reason
        damaged = [dict(sorted(bad.items(), key=lambda entry: int(entry[0]))) for bad in damaged]


class _SurveyPass:
    """One pass over all images not known to be damaged, for a given number of channels."""

    def __init__(self, spec: Data, damaged: list[dict[str, str]], channels: int, of: int) -> None:
        self.spec, self.channels = spec, channels
        self._of, self._done = of, 0
        self.digest = hashlib.sha256()
        self.levels = np.zeros((channels, 256), dtype=np.int64)
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.found: list[tuple[int, int, str]] = []
        self._first: tuple[int, ...] = ()

    def read_split(self, split: int, records: StoredRecords, numbers: list[int]) -> None:
        """Decode the images of a split, up to the first one with more channels."""
        looked = in_order(partial(_counted, self.spec), records.items(numbers), self.spec.workers)
        with contextlib.closing(looked):
            self._look(split, zip(numbers, looked, strict=True), len(numbers))
        self.digest.update(records.labels[torch.tensor(numbers)].numpy().tobytes())

    def _look(self, split: int, looked: Iterable[tuple[int, Counted]], count: int) -> None:
        began = False
        for i, (where, array, levels) in looked:
            self._done += 1
            if self._done % _REPORT_EVERY == 0:
                tell("images decoded", self._done, self._of)
            if isinstance(array, DamagedImage):
                if self.spec.damaged == "refuse":
                    raise refusal(array)
                self.found.append((split, i, str(array)))
                continue
            if array.ndim == 3 and self.channels == 1:
                self.channels = 3
                return
            self._first = self._first or array.shape
            if array.shape[:2] != self._first[:2]:
                raise mismatch(where, array.shape, self._first)
            pixels = in_channels(array, self.channels)
            self.shape = (self.channels, *array.shape[:2])
            if not began:
                self.digest.update(repr((count, *self.shape)).encode())
                began = True
            self.digest.update(pixels.tobytes())
            if split == 0:
                self.levels += levels


def _counted(spec: Data, item: Item) -> Counted:
    where, array = attempt(spec, item)
    if isinstance(array, DamagedImage):
        return where, array, np.zeros((1, 256), dtype=np.int64)
    planes = [array] if array.ndim == 2 else array.transpose(2, 0, 1)
    return where, array, np.stack([np.bincount(plane.ravel(), minlength=256) for plane in planes])
