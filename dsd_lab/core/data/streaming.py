"""Streaming: a survey decodes every image once; training then decodes images when it needs them.

The survey is cached under the relative paths and the content of the files, so moving the files or changing their times
leaves it valid.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from dsd_lab.core.data.dataset import DataSet, check_classes, count_classes
from dsd_lab.core.data.decoding import decoded, in_channels
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import Records, StoredRecords, key_of
from dsd_lab.core.data.splits import StreamedImages
from dsd_lab.core.data.survey import Part, Survey, parts_of, sound_of, survey
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.files.index import content_digest, listing_of
from dsd_lab.files.locks import locked

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_VERSION = 2
"""Part of a survey's file name; raised when its content changes."""
_SURVEY = TypeAdapter(Survey)


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
    parts = parts_of(spec, records, found.damaged)
    labels = [part.labels[torch.tensor(numbers)] for part, numbers in parts]
    kept = [part.labels[torch.tensor(sound_of(part, bad))] for part, bad in zip(records, found.damaged, strict=True)]
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
        with contextlib.suppress(ValidationError):  # there is none yet, or what a power cut has left of one
            known = _SURVEY.validate_python(read_cache(path))
            if (
                len(known.damaged) == len(records)
                and [len(levels) for levels in known.levels] == [256] * known.shape[0]
            ):
                return known
        found = survey(spec, records, path.with_suffix(".part.json"))
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
    root = spec.path.rstrip("/")
    return [
        digest,
        hashlib.sha256(
            "\0".join(path.removeprefix(root) for path, _, _ in stamps).encode(errors="surrogateescape")
        ).hexdigest(),
    ]
