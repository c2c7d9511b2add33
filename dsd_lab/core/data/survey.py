"""The survey of streamed files: decodes every image once and keeps none; continues where a killed process stopped.

It finds damaged images, checks that the others have one shape, and computes the histogram of pixel values and the
fingerprint that the same images would have in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.data.dataset import held_out
from dsd_lab.core.data.decoding import attempt, in_channels, in_order, mismatch, refusal
from dsd_lab.core.data.levels import count_levels
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import Item, StoredRecords, place_of
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.files.image_files import DamagedImage
from dsd_lab.files.sha256 import Sha256

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_REPORT_EVERY = 256
"""Images between two progress reports."""
_SAVE_EVERY = 20.0
"""Seconds between two saves, from which another process can continue."""
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


def sound_of(records: StoredRecords, bad: dict[str, str]) -> list[int]:
    """Indices of the images that are not damaged."""
    return [i for i in range(len(records)) if str(i) not in bad]


def parts_of(spec: Data, records: Sequence[StoredRecords], damaged: list[dict[str, str]]) -> list[Part]:
    """Training and held-out records without the damaged ones, split as in memory."""
    sound = [sound_of(part, bad) for part, bad in zip(records, damaged, strict=True)]
    if not all(sound):
        raise BadInput(f"{place_of(spec)}: every image is damaged")
    if len(records) == 2:
        return list(zip(records, sound, strict=True))
    held = held_out(records[0].labels[sound[0]], spec.holdout)
    numbers = torch.tensor(sound[0])
    return [(records[0], numbers[~held].tolist()), (records[0], numbers[held].tolist())]


def survey(spec: Data, records: Sequence[StoredRecords], notes: Path | None = None) -> Survey:
    """Decode every image once, or more often.

    The hash begins with the number of images and channels, which are known only after the last image. The pass is
    therefore repeated after a damaged image or the first colour image.

    Args:
        spec: how images are decoded.
        records: training images, and held-out ones where the source has a split of its own.
        notes: file that stores the progress for the next process; None stores nothing.
    """
    damaged: list[dict[str, str]] = [{} for _ in records]
    channels, count = 1, sum(len(part) for part in records)
    looked = _taken_up(spec, notes, count)
    if looked is not None:
        damaged, channels = looked.damaged, looked.channels
    while True:
        looked = looked or _Look(spec, damaged, channels, count, notes)
        parts = parts_of(spec, records, damaged)
        for number, part in enumerate(parts):
            looked.at(number, *part)
            if looked.channels > channels:
                break
        if looked.channels == channels and not looked.found:
            if notes is not None:
                notes.unlink(missing_ok=True)
            return Survey(looked.shape, looked.levels.tolist(), looked.digest.hexdigest(), damaged)
        channels = looked.channels
        for which, i, reason in looked.found:
            damaged[which if len(records) == 2 else 0][str(i)] = reason
        damaged = [dict(sorted(bad.items(), key=lambda entry: int(entry[0]))) for bad in damaged]
        looked = None


class _Look:
    """One pass over all images not known to be damaged, for a given number of channels."""

    def __init__(
        self, spec: Data, damaged: list[dict[str, str]], channels: int, of: int, notes: Path | None = None
    ) -> None:
        self.spec, self.damaged, self.channels = spec, damaged, channels
        self._of, self._notes, self._saved = of, notes, time.monotonic()
        self.digest = Sha256()
        self.levels = np.zeros((channels, 256), dtype=np.int64)
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.found: list[tuple[int, int, str]] = []
        self._first: tuple[int, ...] = ()
        self._split, self._place, self._began, self._done = 0, 0, False, 0

    def at(self, split: int, records: StoredRecords, numbers: list[int]) -> None:
        """Decode the images of a split, up to the first one with more channels; skip those of an earlier process."""
        if split < self._split:
            return
        if split > self._split:
            self._split, self._place, self._began = split, 0, False
        left = numbers[self._place :]
        looked = in_order(partial(_counted, self.spec), records.items(left), _threads(self.spec))
        with contextlib.closing(looked):
            self._look(split, zip(left, looked, strict=True), len(numbers))
        self.digest.update(records.labels[torch.tensor(numbers)].numpy().tobytes())

    def _look(self, split: int, looked: Iterable[tuple[int, Counted]], count: int) -> None:
        for i, (where, array, levels) in looked:
            self._done += 1
            if self._done % _REPORT_EVERY == 0:
                tell("images decoded", self._done, self._of)
            if isinstance(array, DamagedImage):
                if self.spec.damaged == "refuse":
                    raise refusal(array)
                self.found.append((split, i, str(array)))
            elif array.ndim == 3 and self.channels == 1:
                self.channels = 3
                return
            else:
                self._take(split, where, array, levels, count)
            self._place += 1
            if self._notes is not None and time.monotonic() - self._saved >= _SAVE_EVERY:
                self.save()

    def _take(self, split: int, where: str, array: np.ndarray, levels: np.ndarray, count: int) -> None:
        self._first = self._first or array.shape
        if array.shape[:2] != self._first[:2]:
            raise mismatch(where, array.shape, self._first)
        pixels = in_channels(array, self.channels)
        self.shape = (self.channels, *array.shape[:2])
        if not self._began:
            self.digest.update(repr((count, *self.shape)).encode())
            self._began = True
        self.digest.update(pixels.tobytes())
        if split == 0:
            self.levels += levels

    def save(self) -> None:
        """Save the progress, if the state of the hash can be read."""
        self._saved = time.monotonic()
        if self._notes is None or self.digest.state is None:
            return
        content = {
            "damaged": self.damaged,
            "channels": self.channels,
            "digest": self.digest.state.hex(),
            "levels": self.levels.tolist(),
            "shape": self.shape,
            "found": self.found,
            "first": self._first,
            "at": [self._split, self._place, self._began, self._done],
        }
        write_json(self._notes, {"sum": _sum(content), "content": content}, durable=True)

    def take_up(self, content: dict[str, Any]) -> None:
        """Continue from the progress that another process saved."""
        self.digest = Sha256(bytes.fromhex(content["digest"]))
        self.levels = np.array(content["levels"], dtype=np.int64)
        self.shape, self._first = tuple(content["shape"]), tuple(content["first"])
        self.found = [(which, i, reason) for which, i, reason in content["found"]]
        self._split, self._place, self._began, self._done = content["at"]


def _taken_up(spec: Data, notes: Path | None, count: int) -> _Look | None:
    """The pass of saved progress; None where there is none, or it is damaged."""
    found = {} if notes is None else read_cache(notes)
    content = found.get("content")
    if not isinstance(content, dict) or found.get("sum") != _sum(content):
        return None
    try:
        looked = _Look(spec, content["damaged"], content["channels"], count, notes)
        looked.take_up(content)
    except (KeyError, TypeError, ValueError):  # forged, or of another machine, whose hash cannot continue here
        return None
    return looked


def _sum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _threads(spec: Data) -> int:
    """Number of threads: at least one for each processor, because a trial waits for the survey."""
    return spec.workers and max(spec.workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _counted(spec: Data, item: Item) -> Counted:
    where, array = attempt(spec, item)
    if isinstance(array, DamagedImage):
        return where, array, np.zeros((1, 256), dtype=np.int64)
    return where, array, count_levels(in_channels(array, 1 if array.ndim == 2 else 3)[None])
