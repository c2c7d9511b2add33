"""Images in one `.zip` file: as StyleGAN's and EDM's dataset tools write them, or laid out as an image folder."""

from __future__ import annotations

import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from torch import Tensor

from dsd_lab.core.data.assembly import Found, assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.folder import Listed, by_labels, check_held, in_order_of, labels_limit
from dsd_lab.core.data.folder_layout import LABELS
from dsd_lab.core.data.layout import TRAIN, Leftovers, class_order, is_image_name, split_name
from dsd_lab.core.data.records import Item, Stamp, StoredRecords, shown, stamp_of
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import check_plain
from dsd_lab.files.image_files import MAX_BYTES

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,  # encrypted
)
"""Errors of Python's library for a damaged or encrypted member."""
_UNREADABLE: tuple[type[Exception], ...] = (OSError, *_DAMAGE)


def load_zip(spec: Data, cache: Path | None) -> DataSet:
    """The images of a `.zip` file, as `find_zip` reads it."""
    return assemble(spec, find_zip(spec), cache)


def find_zip(spec: Data) -> Found:
    """Images with a `dataset.json`, or `CLASS/...`, `train/CLASS/...` with `val/CLASS/...`, or without labels.

    Classes and images have the order that they have in a folder into which the file was unpacked. One folder around
    everything is passed over.

    Raises:
        BadInput: it is no zip file, or its layout is not understood.
    """
    assert spec.path is not None
    path = Path(spec.path)
    try:
        check_plain(path)
        archive = zipfile.ZipFile(path)
    except _UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadInput(f"{shown(path)}: not a zip file: {shown(str(reason))[:300]}") from None
    leftovers = Leftovers()
    names: list[str] = []
    for name in sorted(info.filename for info in archive.infolist() if not info.is_dir()):
        if is_image_name(name) and not any(leftovers.passes(part) for part in PurePosixPath(name).parts):
            names.append(name)
    if not names:
        raise BadInput(f"{shown(path)}: holds no images")
    listed, held, origin, notes = _listed(archive, path, names)
    classes = class_order(name for name in listed if name is not None)
    holdout = None if held is None else ZipRecords(archive, path, *in_order_of(classes, held))
    train = ZipRecords(archive, path, *in_order_of(classes, listed))
    return Found(train, holdout, tuple(map(shown, classes)), origin, (*notes, *leftovers.notes()))


def _listed(archive: zipfile.ZipFile, path: Path, names: list[str]) -> tuple[Listed, Listed | None, str, list[str]]:
    """The training and the held-out images by class, where the latter come from, and what is not used."""
    if LABELS in archive.namelist():
        try:
            raw = _read(archive, LABELS, labels_limit(len(names)))
        except OSError as error:
            raise BadInput(f"{shown(path)}: {LABELS}: {error}") from None
        return by_labels(raw, f"{path}: {LABELS}", {name: name for name in names}), None, "", []
    split = {name: name.split("/") for name in names}
    while _wrapped(list(split.values())):
        split = {name: parts[1:] for name, parts in split.items()}
    folders = dict.fromkeys(parts[0] for parts in split.values() if len(parts) > 1)
    named = {folder: found for folder in folders if (found := split_name(folder)) and not found.prefix}
    trains = [folder for folder, found in named.items() if found.split == TRAIN]
    if len(trains) != 1 or max(map(len, split.values())) < 3:
        return _by_class(path, split), None, "", []
    rest = [folder for folder in sorted(named, key=lambda folder: named[folder].rank) if folder not in trains]
    notes = [f"not used: {shown(folder)}/" for folder in folders if folder not in (*trains, *rest[:1])]
    parts = [_by_class(path, {n: p[1:] for n, p in split.items() if p[0] == f}) for f in (*trains, *rest[:1])]
    if len(parts) == 1:
        return parts[0], None, "", notes
    check_held(path / rest[0], parts[1], path / trains[0], parts[0])
    return parts[0], parts[1], f"{shown(rest[0])}/", notes


def _wrapped(split: list[list[str]]) -> bool:
    """Whether everything lies in one folder that is no class: folders lie in it, or images alone."""
    if min(map(len, split)) < 2 or len({parts[0] for parts in split}) > 1 or split_name(split[0][0]) is not None:
        return False
    return min(map(len, split)) > 2 or max(map(len, split)) == 2


def _by_class(path: Path, split: dict[str, list[str]]) -> Listed:
    """By the first of their folders; under None where no image lies in one."""
    found: Listed = {}
    for name, parts in split.items():
        found.setdefault(parts[0] if len(parts) > 1 else None, []).append(name)
    if None in found and len(found) > 1:
        raise BadInput(
            f"{shown(path)}: {shown(str(found[None][0]))} lies beside class folders; move it into one, or away"
        )
    return found


class ZipRecords(StoredRecords):
    """Images in a zip file, which Python's library reads from several threads at once."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, names: list[str], labels: Tensor) -> None:
        self._archive, self._path, self._names, self.labels = archive, path, names, labels

    def item(self, i: int) -> Item:
        return f"{shown(self._path)}: {shown(self._names[i])}", partial(_read, self._archive, self._names[i])

    def stamp(self) -> Stamp:
        return stamp_of([self._path])


def _read(archive: zipfile.ZipFile, name: str, most: int = MAX_BYTES) -> bytes:
    """The bytes of a member. The declared size bounds what is unpacked; `ZipFile.read` unpacks without a bound.

    Raises:
        OSError: it is larger than `most` bytes, damaged, encrypted, or neither stored nor deflated.
    """
    entry = archive.getinfo(name)
    if entry.file_size > most:
        raise OSError(f"is larger than {most:,} bytes")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise OSError(f"compression method {entry.compress_type}; only stored and deflated entries are read")
    try:
        with archive.open(entry) as file:
            raw = file.read(entry.file_size)
    except _DAMAGE as error:
        raise OSError(str(error) or type(error).__name__) from None
    if len(raw) < entry.file_size:
        raise OSError(f"holds {len(raw):,} bytes, and its entry says {entry.file_size:,}")
    return raw
