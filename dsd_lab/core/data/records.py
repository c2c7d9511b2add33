"""Encoded images in a fixed order: what a source lists, and what a stream reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.atomic import create_beside, write_atomic
from dsd_lab.files.bounded import parse_json, read_plain
from dsd_lab.files.image_files import MAX_BYTES
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import printable

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

Stamp = list[tuple[str, int, int]]
"""Path, size in bytes and modification time in nanoseconds of every file of a data set."""
Item = tuple[str, Callable[[], bytes | None]]
"""The name of an image in messages, and a function that reads its bytes."""


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """The stamp of some files."""
    stats = ((path, path.stat()) for path in paths)
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


class Records(ABC):
    """Encoded images with labels [N] int64, readable in order."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All images in order."""

    @abstractmethod
    def stamp(self) -> Stamp:
        """The files behind them."""

    @abstractmethod
    def stored(self, cache: Path | None) -> StoredRecords:
        """The same images, readable in any order; `cache` is a folder for files that this needs."""


class StoredRecords(Records):
    """Encoded images that are readable in any order, from several threads at once."""

    @abstractmethod
    def item(self, i: int) -> Item:
        """Image i."""

    def items(self, chosen: Iterable[int] | None = None) -> Iterator[Item]:
        return map(self.item, range(len(self)) if chosen is None else chosen)

    def stored(self, cache: Path | None) -> StoredRecords:
        return self


class FileRecords(StoredRecords):
    """One file per image."""

    def __init__(self, paths: list[str], labels: Tensor) -> None:
        self._paths, self.labels = paths, labels

    def item(self, i: int) -> Item:
        return shown(self._paths[i]), partial(_read, self._paths[i])

    def stamp(self) -> Stamp:
        found: Stamp = []
        for path in self._paths:
            try:
                stat = os.stat(path)
            except OSError:  # a broken link: decoding reports it
                found.append((path, -1, -1))
                continue
            found.append((path, stat.st_size, stat.st_mtime_ns))
        return found


def shown(path: str | Path) -> str:
    """A path for a message of one line: unprintable characters are escaped."""
    return printable(os.fspath(path).encode("utf-8", "backslashreplace").decode())


def place_of(spec: Data) -> str:
    """The name of the whole data set in messages."""
    return shown(spec.path or spec.hub or spec.source)


def _read(path: str) -> bytes:
    return read_plain(path, MAX_BYTES)


class PackedRecords(StoredRecords):
    """Encoded images concatenated in one file, with the offset of each; replaces a columnar file for random access."""

    def __init__(self, packed: Path, names: Callable[[int], str], labels: Tensor, stamp: Stamp) -> None:
        self._file = packed.open("rb")
        self.offsets = np.load(packed.with_suffix(".npy"))
        """Of every image, and the end of the last [N + 1]."""
        self._names, self.labels, self._stamp = names, labels, stamp

    def item(self, i: int) -> Item:
        start, end = self.offsets[i : i + 2].tolist()
        return self._names(i), partial(os.pread, self._file.fileno(), end - start, start)

    def stamp(self) -> Stamp:
        return self._stamp


def pack(records: Records, cache: Path | None, column: str, names: Callable[[int], str]) -> PackedRecords:
    """Unpack the images of a column into one file in the cache, once; without a cache, into a temporary file.

    Raises:
        NoResources: the disk has no space for the file.
    """
    stamp = records.stamp()
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder:  # an open file stays readable when removed
            return PackedRecords(_packed(records, Path(folder) / "images.pack", stamp), names, records.labels, stamp)
    path = cache / f"{key_of(stamp, column)}.pack"
    with locked(path.with_suffix(".lock")):
        if not _is_whole(path):
            _packed(records, path, stamp)
    return PackedRecords(path, names, records.labels, stamp)


def _is_whole(path: Path) -> bool:
    try:
        return int(np.load(path.with_suffix(".npy"))[-1]) == path.stat().st_size
    except (FileNotFoundError, ValueError, EOFError):
        return False


def key_of(stamp: Stamp | list[str], *more: object) -> str:
    """Cache key of something made from these files with these settings."""
    return hashlib.sha256(json.dumps([stamp, more]).encode()).hexdigest()[:24]


def _packed(records: Records, path: Path, stamp: Stamp) -> Path:
    needed, free = sum(size for _, size, _ in stamp), shutil.disk_usage(path.parent).free
    if needed > free:
        raise NoResources(
            f"{path.parent}: {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB needed to stream from parquet files"
        )
    offsets = [0]
    handle, temporary = create_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            for _, read in records.items():
                try:
                    raw = read() or b""
                except OSError:  # a row refers to a missing file: decoding reports a damaged image
                    raw = b""
                offsets.append(offsets[-1] + file.write(raw))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    array = io.BytesIO()
    np.save(array, np.array(offsets, dtype=np.int64))
    write_atomic(path.with_suffix(".npy"), array.getvalue())
    return path


def numbered(place: str, train: np.ndarray, holdout: np.ndarray | None) -> tuple[list[Tensor], list[int]]:
    """Class numbers 0, 1, ... without gaps for labels [N] and [M], and the label of each number.

    The classes are the labels of the training images.

    Raises:
        BadInput: a held-out image has a class without training images.
    """
    known, numbers = np.unique(train, return_inverse=True)
    found = [torch.from_numpy(numbers.astype(np.int64))]
    if holdout is not None:
        foreign = np.setdiff1d(holdout, known)
        if len(foreign):
            count = int((holdout == foreign[0]).sum())
            raise BadInput(
                f"{place}: class {foreign[0]} has no training image but {count} held-out ones; add some, or remove those"
            )
        found.append(torch.from_numpy(np.searchsorted(known, holdout).astype(np.int64)))
    return found, known.tolist()


def class_names_in(metadata: dict[bytes, bytes] | None, column: str) -> list[str]:
    """Class names from the `huggingface` schema metadata of a parquet file; empty without them."""
    try:
        names = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return [shown(str(name))[:200] for name in names] if isinstance(names, list) else []
