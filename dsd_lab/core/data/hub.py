"""Data sets of the Hugging Face Hub by name, read with the `datasets` library."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsd_lab.core.data.assembly import Found, assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.layout import TRAIN, split_name
from dsd_lab.core.data.records import Item, Stamp, StoredRecords, numbered, shown, stamp_of
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import parse_json, read_plain
from dsd_lab.files.image_files import MAX_BYTES
from dsd_lab.units import readable

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data


_MAX_MEMORY, _MAX_FILE_BYTES = 8 * 2**30, 16 * 2**30
"""Limits of the process that unpacks a data set, in bytes: memory, and size of a file that it writes."""
_MAX_RATIO, _MAX_EXTRA = 20, 64 * 2**20
"""Bytes that the process may write per byte of the files of the data set, and in addition."""


def load_hub(spec: Data, cache: Path | None) -> DataSet:
    """A data set of the Hub. The library caches downloads and reads its cache offline."""
    found = find_hub(spec)
    parts = [part for part in (found.train, found.holdout) if part is not None]
    return replace(assemble(spec, found, cache), files=tuple(path for part in parts for path, *_ in part.stamp()))


def find_hub(spec: Data) -> Found:
    """List the images of the split `train`, and as held-out images those of `val`, `valid`, `validation` or `test`.

    A test split without labels is not used.

    Raises:
        BadInput: the library is not installed, does not know the name or cannot reach the Hub, or the
            columns do not hold images and class numbers.
    """
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            f"data.source: 'datasets' needs a library that is not installed ({error.name}); pip install 'dsd-lab[datasets]'"
        ) from None
    assert spec.hub is not None
    found = {
        name: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in files])
        for name, files in _unpacked(spec.hub).items()
        if files  # an empty split has none
    }
    splits = {name: split for name in found if (split := split_name(name)) and not split.prefix}
    trains = [name for name, split in splits.items() if split.split == TRAIN]
    if len(trains) != 1:
        raise BadInput(f"data.hub: {spec.hub!r} has no split 'train'; it has {', '.join(found)}")
    tables, notes, origin = {TRAIN: _checked(spec, trains[0], found[trains[0]])}, [], ""
    for name in sorted(splits.keys() - set(trains), key=lambda name: splits[name].rank):
        if origin:
            notes.append(f"not used: {name}")
        elif splits[name].split == "test" and _unlabelled(spec, found[name]):
            notes.append(f"not used: {name} (it has no labels)")
        else:
            tables["holdout"], origin = _checked(spec, name, found[name]), name
    notes += [f"not used: {name}" for name in found if name not in splits]
    raw = {name: _labels(spec, origin if name == "holdout" else trains[0], table) for name, table in tables.items()}
    labels, known = numbered(f"data.hub: {spec.hub}", raw[TRAIN], raw.get("holdout"))
    classes: tuple[str, ...] = ()
    if spec.label_column is not None:
        feature = tables[TRAIN].features[spec.label_column]
        classes = tuple(feature.int2str(n) if isinstance(feature, datasets.ClassLabel) else str(n) for n in known)
    names = [trains[0], *([origin] if origin else [])]
    records = [HubRecords(spec, *parts) for parts in zip(names, tables.values(), labels, strict=True)]
    return Found(records[0], records[1] if origin else None, classes, origin, tuple(notes))


def _unpacked(name: str) -> dict[str, list[str]]:
    """Split -> its Arrow files. The library makes them in a child process with limited memory.

    Raises:
        BadInput: the library refuses the data set, cannot reach the Hub, or exceeds the limits.
    """
    bounds = map(str, (_MAX_MEMORY, _MAX_FILE_BYTES, _MAX_RATIO, _MAX_EXTRA))
    command = [sys.executable, "-P", "-m", "dsd_lab.files.hub_child", name, *bounds]
    done = subprocess.run(command, capture_output=True)
    try:
        answer = parse_json(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    except (IndexError, ValueError):
        answer = {}
    if reason := answer.get("unreachable"):
        raise BadInput(
            f"data.hub: {name!r} is not in the library's cache and the Hub cannot be reached: {_line(reason)}"
        )
    if reason := answer.get("refused"):
        raise BadInput(f"data.hub: {name!r} cannot be loaded: {_line(reason)}")
    if large := answer.get("large"):
        raise BadInput(
            f"data.hub: {name!r} is stopped: its files have {readable(large['listed'])}, and it wrote more than {_MAX_RATIO} times that and {readable(_MAX_EXTRA)} while it was downloaded and unpacked"
        )
    if "splits" not in answer:
        raise BadInput(
            f"data.hub: {name!r} cannot be loaded: the library ended without an answer; it may take {_MAX_MEMORY / 2**30:g} GiB of memory, and {_MAX_FILE_BYTES / 2**30:g} GiB a file"
        )
    splits: dict[str, list[str]] = answer["splits"]
    return splits


def _checked(spec: Data, name: str, table: Any) -> Any:
    import datasets

    for column in filter(None, (spec.image_column, spec.label_column)):
        if column not in table.column_names:
            raise BadInput(
                f"data.hub: {spec.hub!r} has no column {column!r} (it has {shown(', '.join(table.column_names))[:500]}); data.image_column and data.label_column name them, `data.label_column: null` where there are no labels"
            )
    if not isinstance(table.features[spec.image_column], datasets.Image):
        raise BadInput(f"data.image_column: {spec.image_column!r} of {spec.hub!r} holds no images")
    if not len(table):
        raise BadInput(f"data.hub: {spec.hub!r}: the split {name!r} holds no images")
    return table.cast_column(spec.image_column, datasets.Image(decode=False))


def _unlabelled(spec: Data, table: Any) -> bool:
    """Whether no row has a label (null, or -1), as in a test split with secret labels."""
    if spec.label_column is None:
        return False
    if spec.label_column not in table.column_names:
        return True
    found = table.with_format("arrow")[spec.label_column].to_pylist()
    return all(label is None or (isinstance(label, int) and label < 0) for label in found)


def _labels(spec: Data, name: str, table: Any) -> np.ndarray:
    if spec.label_column is None:
        return np.zeros(len(table), dtype=np.int64)
    found = np.asarray(table.with_format("arrow")[spec.label_column].to_pylist(), dtype=object)
    for row, label in enumerate(found):
        if not isinstance(label, int) or label < 0:
            raise BadInput(
                f"data.hub: {spec.hub!r}: {name} row {row}: the label {label!r} is no class; classes are numbered from 0"
            )
    return found.astype(np.int64)


class HubRecords(StoredRecords):
    """The rows of a split, read one by one from memory-mapped files."""

    def __init__(self, spec: Data, name: str, table: Any, labels: Any) -> None:
        self._place, self._column, self._table, self.labels = f"{spec.hub}: {name}", spec.image_column, table, labels
        self._hub = spec.hub

    def item(self, i: int) -> Item:
        return f"{self._place} row {i}", partial(self._bytes, i)

    def _bytes(self, i: int) -> bytes | None:
        image = self._table[i][self._column]
        if image is None or image["bytes"] is not None or image["path"] is None:
            return image and image["bytes"]
        return read_plain(self._inside(image["path"]), MAX_BYTES)

    def _inside(self, path: str) -> str:
        """A file that a row names: the library's own, which it unpacked, or one below the folder that stands for the set.

        Raises:
            OSError: it is another; a table of others can name any file of the user's.
        """
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        found = os.path.realpath(path)
        own = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
        if not any(found.startswith(os.path.realpath(place).rstrip("/") + "/") for place in (*own, str(self._hub))):
            raise OSError("the row names a file that is not of the set")
        return found

    def stamp(self) -> Stamp:
        """The library's files, and image files that rows refer to by path."""
        named = []
        if self._without_bytes():
            named = [image["path"] for image in self._table.with_format("arrow")[self._column].to_pylist() if image]
        files = [*(file["filename"] for file in self._table.cache_files), *(name for name in named if name)]
        return stamp_of(path for path in map(Path, files) if path.is_file())  # decoding reports missing files

    def _without_bytes(self) -> bool:
        column = self._table.with_format("arrow")[self._column]
        return any(chunk.field("bytes").null_count for chunk in column.chunks)


def _line(reason: str) -> str:
    return shown((reason.splitlines() or [""])[0])[:300]
