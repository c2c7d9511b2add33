"""Tar shards in WebDataset's layout: files of one image have one name up to the first dot, such as `0042.jpg`, `0042.cls`.

The shards are listed once. Their members are not compressed, so that images are then read in any order.
"""

from __future__ import annotations

import os
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch

from dsd_lab.core.data.assembly import Found, assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.layout import check_shards, group_of, is_image_name, split_name
from dsd_lab.core.data.parquet_files import SplitFiles, split_files
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import Item, Stamp, StoredRecords, numbered, shown, stamp_of
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import open_plain
from dsd_lab.files.image_files import MAX_BYTES

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_CLASS = "cls"
"""Suffix of the file that holds an image's class number."""
_MAX_DIGITS = 20
_MAX_HEADER = 2**20
"""Bytes of an extended header, which holds a name; the library reads as many as the header says."""


def load_tar(spec: Data, cache: Path | None) -> DataSet:
    """The images of tar shards, as `find_tar` reads them."""
    return assemble(spec, find_tar(spec), cache)


def find_tar(spec: Data) -> Found:
    """`train*.tar` and one of `val*`, `valid*`, `validation*`, `test*` as held-out images; or shards of any one name.

    Raises:
        BadInput: shards are missing or damaged, or labels are no classes; the message names the file.
    """
    assert spec.path is not None
    root = Path(spec.path)
    first, candidates, notes = _splits(root)
    train, holdout, held, origin = TarRecords(first.files), None, None, ""
    for candidate in candidates:
        records = TarRecords(candidate.files)
        if holdout is not None:
            notes.append(f"not used: {shown(candidate.name)}")
        elif candidate.split == "test" and records.raw is None and train.raw is not None:
            notes.append(f"not used: {shown(candidate.name)} (it has no labels)")
        else:
            holdout, origin = records, candidate.name
            held = records.raw
    if train.raw is None:
        known: list[int] = []
        labels = [torch.zeros(len(train.members), dtype=torch.int64)]
        if holdout is not None:
            labels.append(torch.zeros(len(holdout.members), dtype=torch.int64))
    else:
        if holdout is not None and held is None:
            raise BadInput(f"{shown(root)}: {shown(origin)} has no .{_CLASS} files, and the training shards have some")
        labels, known = numbered(shown(root), train.raw, held)
    for part, numbers in zip([train] if holdout is None else [train, holdout], labels, strict=True):
        part.labels = numbers
    return Found(train, holdout, tuple(map(str, known)), origin, tuple(notes))


def _splits(root: Path) -> tuple[SplitFiles, list[SplitFiles], list[str]]:
    files = sorted(p for p in root.glob("*.tar") if not p.name.startswith("."))
    groups = {group_of(path.stem) for path in files}
    if len(groups) == 1 and split_name(next(iter(groups))) is None:
        check_shards(files)
        return SplitFiles(f"{next(iter(groups))}*.tar", "train", files), [], []
    return split_files(root, "tar")


class TarRecords(StoredRecords):
    """Images of some shards, with the offset of each."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self.members: list[tuple[int, int, int, str]] = []
        """Of every image: number of its shard, offset and size in bytes, name."""
        raw: list[int | None] = []
        for number, path in enumerate(files):
            tell("shards listed", number, len(files))
            for name, offset, size, label in _listed(path):
                self.members.append((number, offset, size, name))
                raw.append(label)
        if not raw:
            raise BadInput(f"{shown(files[0])}: holds no images")
        if None in raw and any(label is not None for label in raw):
            number, _, _, name = self.members[raw.index(None)]
            raise BadInput(
                f"{shown(files[number])}: {shown(name)} has no .{_CLASS} file beside it, and others have one"
            )
        self.raw = None if raw[0] is None else np.array(raw, dtype=np.int64)
        self.labels = torch.empty(len(raw), dtype=torch.int64)

    def item(self, i: int) -> Item:
        number, offset, size, name = self.members[i]
        return f"{shown(self._files[number])}: {shown(name)}", partial(_read, self._files[number], offset, size)

    def stamp(self) -> Stamp:
        return stamp_of(self._files)


class _Headers:
    """What the library reads of a shard. A read is bounded, so that a crafted header cannot take all memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _listed(path: Path) -> list[tuple[str, int, int, int | None]]:
    """Name, offset, size and label of every image of a shard, in its order."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with open_plain(path) as file, tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as shard:
            end = os.fstat(file.fileno()).st_size
            for member in shard:
                if not 0 <= member.size <= end - member.offset_data and member.isreg():
                    raise tarfile.ReadError(f"{member.name} is cut short")
                name = PurePosixPath(member.name)
                stem, _, suffix = name.name.partition(".")
                is_image, is_label = is_image_name(name.name), suffix.lower() == _CLASS
                if name.name.startswith(".") or member.isdir() or not (is_image or is_label):
                    continue
                where, key = f"{shown(path)}: {shown(member.name)}", str(name.parent / stem)
                if not member.isreg() or member.issparse():
                    raise BadInput(
                        f"{where}: not a plain file (a link, or sparse); pack it with `tar --dereference --hard-dereference`"
                    )
                if key in (images if is_image else labels):
                    raise BadInput(f"{shown(path)}: two {'images' if is_image else 'labels'} are called {shown(key)}")
                if is_image:
                    images[key] = (member.name, member.offset_data, member.size)
                else:
                    labels[key] = _label(
                        where, os.pread(file.fileno(), min(member.size, _MAX_DIGITS + 1), member.offset_data)
                    )
    except BadInput:
        raise
    except Exception as error:  # a crafted header ends with any of them, RecursionError and MemoryError too
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise BadInput(
            f"{shown(path)}: not an uncompressed tar file, or a damaged one: {shown(reason)[:300]}"
        ) from None
    return [(name, offset, size, labels.get(key)) for key, (name, offset, size) in images.items()]


def _label(where: str, raw: bytes) -> int:
    text = raw.strip()
    if not text.isdigit() or len(raw) > _MAX_DIGITS or int(text) >= 2**63:
        said = shown(raw.decode("utf-8", "backslashreplace"))
        raise BadInput(f"{where}: the label {said!r} is no class; classes are numbered from 0")
    return int(text)


def _read(path: Path, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise OSError(f"is larger than {MAX_BYTES:,} bytes")
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(handle, size, offset)
    finally:
        os.close(handle)
