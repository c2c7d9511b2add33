"""Image files that are not decoded yet, in an order of their own: what a source gives, and where streams read."""

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
"""Path, size in bytes and time of change in nanoseconds of every file that a data set is read from."""
Item = tuple[str, Callable[[], bytes | None]]
"""What messages call an image, and what reads its bytes."""


def stamp_of(paths: Iterable[Path]) -> Stamp:
    """The stamp of some files."""
    stats = ((path, path.stat()) for path in paths)
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


class Records(ABC):
    """Encoded images with labels [N] int64, read from the first to the last."""

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
        """The same images, readable in any order; `cache` is a folder that keeps what is made for that."""


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
    """One file an image."""

    def __init__(self, paths: list[str], labels: Tensor) -> None:
        self._paths, self.labels = paths, labels

    def item(self, i: int) -> Item:
        return shown(self._paths[i]), partial(_read, self._paths[i])

    def stamp(self) -> Stamp:
        found: Stamp = []
        for path in self._paths:
            try:
                stat = os.stat(path)
            except OSError:  # a link into nothing: decoding names it
                found.append((path, -1, -1))
                continue
            found.append((path, stat.st_size, stat.st_mtime_ns))
        return found


def shown(path: str | Path) -> str:
    """A path as it can stand in a message of one line: what does not print is escaped."""
    return printable(os.fspath(path).encode("utf-8", "backslashreplace").decode())


def place_of(spec: Data) -> str:
    """What messages call the whole data set."""
    return shown(spec.path or spec.hub or spec.source)


def _read(path: str) -> bytes:
    return read_plain(path, MAX_BYTES)


class PackedRecords(StoredRecords):
    """Encoded images laid end to end in one file, with the offset of each: what a columnar file cannot give one by one."""

    def __init__(self, packed: Path, names: Callable[[int], str], labels: Tensor, stamp: Stamp) -> None:
        self._file = packed.open("rb")
        self._offsets = np.load(packed.with_suffix(".npy"))
        self._names, self.labels, self._stamp = names, labels, stamp

    def item(self, i: int) -> Item:
        start, end = self._offsets[i : i + 2].tolist()
        return self._names(i), partial(os.pread, self._file.fileno(), end - start, start)

    def stamp(self) -> Stamp:
        return self._stamp


def pack(records: Records, cache: Path | None, column: str, names: Callable[[int], str]) -> PackedRecords:
    """The images of a column unpacked into one file in the cache, once; without a cache, into a file that ends with them.

    Raises:
        NoResources: the disk has no room for it.
    """
    stamp = records.stamp()
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder:  # an open file outlives its name
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
    """Names what was made from these files, as they are, in this way."""
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
                except OSError:  # a file that a row names and that is not there: a damaged image, which decoding names
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
    """Labels as class numbers 0, 1, ... without gaps, and the label that each number stands for.

    The classes are those of the training images: no other can be trained for or sampled.

    Raises:
        BadInput: a held-out image has a class that no training image has.
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
    """Names of the classes in the `huggingface` schema metadata of a parquet file; none where it has none."""
    try:
        names = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return [shown(str(name))[:200] for name in names] if isinstance(names, list) else []
