"""Encoded images -> data set: decoded into memory, or surveyed once and streamed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.data.dataset import DataSet, check_classes, count_classes, data_set, held_out, share_held_out, split
from dsd_lab.core.data.decoding import attempt, decoded, in_channels, in_order, mismatch, refusal
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import Records, place_of
from dsd_lab.core.data.splits import Images
from dsd_lab.core.data.streaming import streamed
from dsd_lab.errors import BadInput
from dsd_lab.files.image_files import DamagedImage

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_REPORT_EVERY = 256
"""Images between two progress reports."""
RESIDENT_BYTES = 2 * 2**30
"""Under `memory: auto`, images whose decoded size is above this are streamed."""


@dataclass(frozen=True)
class Found:
    """The images that a source lists, before any is decoded: records, classes, and the origin of the split."""

    train: Records
    holdout: Records | None
    """None: a fraction of the training images is held out."""
    class_names: tuple[str, ...]
    """By class number; empty where the images have no labels."""
    holdout_from: str = ""
    notes: tuple[str, ...] = ()
    """Files and folders that are not used, one line each."""


def assemble(spec: Data, found: Found, cache: Path | None) -> DataSet:
    """The data set of some records. Without held-out records, a fraction of the training images is held out.

    Args:
        spec: how images are decoded, and whether they stay in memory.
        found: encoded images.
        cache: folder for the files that streaming needs; None keeps none.

    Raises:
        BadInput: an image is damaged, or its size differs from the others'; the message names it.
        NoResources: the disk has no space for the files that streaming needs.
    """
    train, holdout = found.train, found.holdout
    if _streams(spec, found):
        made = streamed(spec, train, holdout, found.class_names, cache)
    else:
        made = _resident(spec, train, holdout, found.class_names)
    origin = share_held_out(spec.holdout, made.classes) if holdout is None else found.holdout_from
    return replace(made, holdout_from=origin, notes=found.notes)


def glanced(spec: Data, found: Found) -> dict[str, Any] | None:
    """Facts of images that would be streamed, from the labels and the first image; None if they stay in memory."""
    if not _streams(spec, found):
        return None
    first = _first(spec, found.train)
    labels = [found.train.labels, None if found.holdout is None else found.holdout.labels]
    if labels[1] is None:
        held = held_out(found.train.labels, spec.holdout)
        labels = [found.train.labels[~held], found.train.labels[held]]
    train, holdout = (part for part in labels if part is not None)
    classes = count_classes(train)
    return {
        "train": len(train),
        "holdout": len(holdout),
        "holdout_from": found.holdout_from or share_held_out(spec.holdout, classes),
        "classes": classes,
        "class_names": list(found.class_names),
        "shape": [3 if first.ndim == 3 else 1, *first.shape[:2]],
        "notes": list(found.notes),
    }


def _streams(spec: Data, found: Found) -> bool:
    if spec.memory != "auto":
        return spec.memory == "stream"
    count = len(found.train) + (0 if found.holdout is None else len(found.holdout))
    return count * _first(spec, found.train).size > RESIDENT_BYTES


def _first(spec: Data, records: Records) -> np.ndarray:
    """The first image that can be decoded."""
    for where, read in records.items():
        try:
            return decoded(read, where, spec)
        except DamagedImage as damage:
            if spec.damaged == "refuse":
                raise refusal(damage) from None
    raise BadInput(f"{place_of(spec)}: every image is damaged")


def _resident(spec: Data, train: Records, holdout: Records | None, class_names: tuple[str, ...]) -> DataSet:
    damaged: list[str] = []
    first = _stacked(spec, train, damaged)
    check_classes(train.labels, first.labels, class_names)
    if holdout is None:
        return data_set(*split(first, spec.holdout), class_names, tuple(damaged))
    second = _stacked(spec, holdout, damaged)
    if first.shape[1:] != second.shape[1:]:
        raise BadInput(
            f"{place_of(spec)}: training images are {list(first.shape)}, held-out images {list(second.shape)}"
        )
    channels = max(first.shape[0], second.shape[0])
    return data_set(_in(channels, first), _in(channels, second), class_names, tuple(damaged))


def _in(channels: int, images: Images) -> Images:
    if images.shape[0] == channels:
        return images
    return Images(images.pixels.repeat(1, channels, 1, 1), images.labels)


def _stacked(spec: Data, records: Records, damaged: list[str]) -> Images:
    pixels: np.ndarray | None = None
    shape: tuple[int, ...] = ()
    kept: list[int] = []
    with contextlib.closing(in_order(partial(attempt, spec), records.items(), spec.workers)) as looked:
        for i, (where, array) in enumerate(looked):
            if i % _REPORT_EVERY == 0:
                tell("images decoded", i, len(records))
            if isinstance(array, DamagedImage):
                if spec.damaged == "refuse":
                    raise refusal(array)
                damaged.append(str(array))
                continue
            if pixels is None:
                shape = array.shape
                pixels = np.empty((len(records), 3 if array.ndim == 3 else 1, *shape[:2]), dtype=np.uint8)
            elif array.shape[:2] != shape[:2]:
                raise mismatch(where, array.shape, shape)
            elif array.ndim == 3 and pixels.shape[1] == 1:  # the first one in colour
                pixels, shape = np.repeat(pixels, 3, axis=1), array.shape
            pixels[len(kept)] = in_channels(array, pixels.shape[1])
            kept.append(i)
    if pixels is None:
        raise BadInput(f"{place_of(spec)}: every image is damaged")
    return Images(torch.from_numpy(pixels[: len(kept)]), records.labels[kept])
