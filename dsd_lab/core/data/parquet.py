"""Parquet files in the Hugging Face image layout: a column of {bytes, path} and one of labels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.data.assembly import Found, assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.parquet_files import split_files
from dsd_lab.core.data.parquet_pages import Column, InvalidPageHeaders, check_pages, columns_of
from dsd_lab.core.data.records import (
    Item,
    Records,
    Stamp,
    StoredRecords,
    class_names_in,
    numbered,
    pack,
    shown,
    stamp_of,
)
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import check_plain, open_plain, read_plain
from dsd_lab.files.image_files import MAX_BYTES

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_ROWS = 4
"""Rows read at a time. Small, because a dictionary-encoded value is stored once and repeated in memory."""
_MAX_GROUP_BYTES = 2 * 2**30
"""Maximum unpacked bytes of a column in a row group; reading one row unpacks the whole row group."""
_MAX_RATIO, _MAX_UNPACKED = 100, 64 * 2**20
"""Maximum unpacked bytes of a file's images: a multiple of its size, plus a constant. Image files hardly compress."""
_MAX_NAME_LENGTH = 300


def load_parquet(spec: Data, cache: Path | None) -> DataSet:
    """The parquet files of a folder, of its sub-folders with names of splits, or of a repository's root."""
    return assemble(spec, find_parquet(spec), cache)


def find_parquet(spec: Data) -> Found:
    """List the images of `train*.parquet`, and as held-out images those of `val*`, `valid*`, `validation*` or `test*`.

    Without such files a fraction of the training images is held out. A test split whose labels are all missing or -1,
    as ImageNet's, is not used. Labels are whole numbers from 0; the classes are the labels of the training images, in
    ascending order.

    Raises:
        BadInput: files or columns are missing, or labels are not class numbers; the message names the file.
    """
    assert spec.path is not None
    root = Path(spec.path)
    first, candidates, notes = split_files(root)
    train = ParquetRecords(first.files, spec, root)
    labels, holdout, held, origin = train.read_labels(), None, None, ""
    for candidate in candidates:
        records = ParquetRecords(candidate.files, spec, root)
        if holdout is not None:
            notes.append(f"not used: {shown(candidate.name)}")
        elif candidate.split == "test" and records.unlabelled():
            notes.append(f"not used: {shown(candidate.name)} (it has no labels)")
        else:
            holdout, held, origin = records, records.read_labels(), candidate.name
    parts, known = numbered(shown(root), labels, held)
    for part, numbers in zip([train] if holdout is None else [train, holdout], parts, strict=True):
        part.labels = numbers
    names = train.class_names
    classes = tuple(names[label] if label < len(names) else str(label) for label in known)
    return Found(train, holdout, classes if spec.label_column is not None else (), origin, tuple(notes))


class ParquetRecords(Records):
    """The rows of some files. Reading a row unpacks its row group, so a stream unpacks all rows first."""

    def __init__(self, files: list[Path], spec: Data, root: Path) -> None:
        self._files, self._image, self._label, self._root = files, spec.image_column, spec.label_column, root
        self._starts = [0]
        self._checked: set[Path] = set()
        self.class_names: list[str] = []
        self.labels = torch.empty(0, dtype=torch.int64)

    def unlabelled(self) -> bool:
        """Whether no row has a label (null, or -1), as in a test split with secret labels."""
        if self._label is None:
            return False
        for path in self._files:
            table = self._opened(path, labelled=False)
            if self._label in table.schema_arrow.names:
                known = [label for label in self._column_of(table, path) if label is not None]
                if known and not (isinstance(known[0], int) and max(known) < 0):
                    return False
        return True

    def read_labels(self) -> np.ndarray:
        """The labels [N] as stored in the files; all 0 if the spec has no label column."""
        import pyarrow

        parts = []
        for path in self._files:
            table = self._opened(path)
            rows = table.metadata.num_rows
            if not rows:
                raise BadInput(f"{shown(path)}: holds no images")
            self._starts.append(self._starts[-1] + rows)
            if self._label is None:
                parts.append(np.zeros(rows, dtype=np.int64))
                continue
            kind = table.schema_arrow.field(self._label).type
            if not pyarrow.types.is_integer(kind):
                raise BadInput(
                    f"{shown(path)}: the labels are {shown(str(kind))[:_MAX_NAME_LENGTH]}, not whole numbers"
                )
            found = self._column_of(table, path)
            if len(found) != rows:
                raise BadInput(f"{shown(path)}: declares {rows:,} rows and holds {len(found):,} labels")
            for row, label in enumerate(found):
                if label is None or label < 0:
                    raise BadInput(
                        f"{shown(path)}: row {row}: the label {label} is no class; classes are numbered from 0"
                    )
            parts.append(np.array(found, dtype=np.int64))
            self.class_names = self.class_names or class_names_in(table.schema_arrow.metadata, self._label)
        return np.concatenate(parts)

    def _column_of(self, table: Any, path: Path) -> list[int | None]:
        import pyarrow

        try:
            found: list[int | None] = table.read(columns=[self._label])[self._label].to_pylist()
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise BadInput(f"{shown(path)}: damaged labels: {_reason(error)}") from None
        return found

    def _opened(self, path: Path, labelled: bool = True) -> Any:
        import pyarrow.parquet

        columns = [self._image, *([self._label] if labelled and self._label is not None else [])]

        with _whole(path):
            check_plain(path)
            table = pyarrow.parquet.ParquetFile(path)
            missing = [name for name in columns if name not in table.schema_arrow.names]
        if missing:
            raise BadInput(
                f"{shown(path)}: no column {missing[0]!r} (it has {shown(', '.join(table.schema_arrow.names))[:500]}); data.image_column and data.label_column name them, `data.label_column: null` where there are no labels"
            )
        kind = table.schema_arrow.field(self._image).type
        fields = [kind.field(i).name for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        if "bytes" not in fields:
            raise BadInput(
                f"{shown(path)}: the column {self._image!r} is {shown(str(kind))[:_MAX_NAME_LENGTH]}, not images as {{bytes, path}}"
            )
        if path not in self._checked:
            with _whole(path):  # names stand in the footer twice
                _check_declared(path, table.metadata.num_rows)
            self._checked.add(path)
        return table

    def items(self) -> Iterator[Item]:
        import pyarrow

        for path in self._files:
            row, unpacked, most = 0, 0, _MAX_UNPACKED + _MAX_RATIO * path.stat().st_size
            table = self._opened(path)
            rows = table.metadata.num_rows
            try:
                for batch in table.iter_batches(_ROWS, columns=[self._image]):
                    for value in batch.column(0):
                        if row == rows:
                            raise BadInput(f"{shown(path)}: declares {rows:,} rows and holds more images")
                        image = value.as_py()
                        unpacked += len((image and image["bytes"]) or b"")
                        if unpacked > most:
                            raise BadInput(
                                f"{shown(path)}: row {row}: its images become more than {most:,} bytes, {_MAX_RATIO} times the file"
                            )
                        where = (
                            f"{shown(path)}: row {row} ({shown(str(image and image.get('path'))[:_MAX_NAME_LENGTH])})"
                        )
                        yield where, partial(_bytes, image, path.parent, self._root)
                        row += 1
            except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
                raise BadInput(f"{shown(path)}: damaged after row {row}: {_reason(error)}") from None
            if row < rows:
                raise BadInput(f"{shown(path)}: declares {rows:,} rows and holds {row:,} images")

    def stamp(self) -> Stamp:
        return stamp_of([*self._files, *self._referenced_files()])

    def _referenced_files(self) -> Iterator[Path]:
        """Image files that rows refer to by path."""
        import pyarrow

        for path in self._files:
            table = self._opened(path, labelled=False)
            with _whole(path):
                counted = [column.nulls for column in _columns(path) if column.path == f"{self._image}.bytes"]
                none_missing = bool(counted) and all(nulls == 0 for nulls in counted)
            if none_missing:
                continue
            try:
                images = (i for b in table.iter_batches(_ROWS, columns=[self._image]) for i in b.column(0).to_pylist())
                for image in images:
                    if image and image["bytes"] is None and image.get("path"):
                        with contextlib.suppress(OSError):  # decoding reports it
                            yield _inside(image["path"], path.parent, self._root)
            except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
                raise BadInput(f"{shown(path)}: damaged images: {_reason(error)}") from None

    def stored(self, cache: Path | None) -> StoredRecords:
        return pack(self, cache, self._image, self._name)

    def _name(self, i: int) -> str:
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        return f"{shown(self._files[file])}: row {i - self._starts[file]}"


def _bytes(image: dict[str, Any] | None, folder: Path, root: Path) -> bytes | None:
    """An image's bytes, from its row or from the file that the row refers to."""
    if not image or image["bytes"] is not None or not image.get("path"):
        return image["bytes"] if image else None
    return read_plain(_inside(image["path"], folder, root), MAX_BYTES)


def _inside(name: str, folder: Path, root: Path) -> Path:
    """The file that a row refers to, inside the folder of its parquet file or of the data.

    Raises:
        OSError: there is no such file inside these folders.
    """
    top = os.path.realpath(root)
    for base in dict.fromkeys((folder, root)):
        found = os.path.realpath(base / name)
        if found.startswith(top.rstrip("/") + "/") and os.path.isfile(found):
            return Path(found)
    raise OSError("the row holds no bytes, and no file of this name is next to the parquet file")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What pyarrow raises while it reads a footer is `BadInput`: the file is no parquet file."""
    import pyarrow

    try:
        yield
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise BadInput(f"{shown(path)}: {_not_parquet(path, _reason(error))}") from None


def _not_parquet(path: Path, reason: str) -> str:
    with contextlib.suppress(OSError), open_plain(path) as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return "a pointer of Git LFS and not the file itself; run `git lfs pull` where it was cloned"
    return f"not a parquet file: {reason}"


def _check_declared(path: Path, rows: int) -> None:
    """Refuse a file whose footer or page headers declare implausible sizes, before anything is unpacked."""
    size = path.stat().st_size
    if rows > size:
        raise BadInput(f"{shown(path)}: declares {rows:,} rows in {size:,} bytes, more than one image a byte")
    most = min(_MAX_GROUP_BYTES, _MAX_UNPACKED + _MAX_RATIO * size)
    for column in _columns(path):
        if column.unpacked > most:
            raise BadInput(
                f"{shown(path)}: the column {shown(column.path)[:_MAX_NAME_LENGTH]!r} declares {column.unpacked:,} bytes in one row group; {most:,} may be unpacked of a file of {size:,} bytes"
            )
        if column.rows:  # of any name: readers go by the order of columns
            try:
                with open_plain(path) as file:
                    check_pages(file, column)
            except InvalidPageHeaders as error:
                raise BadInput(
                    f"{shown(path)}: the column {shown(column.path)[:_MAX_NAME_LENGTH]!r}: {error}"
                ) from None


def _columns(path: Path) -> list[Column]:
    try:
        with open_plain(path) as file:
            return list(columns_of(file))
    except InvalidPageHeaders as error:
        raise BadInput(f"{shown(path)}: {_not_parquet(path, str(error))}") from None


def _reason(error: Exception) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or (str(error).splitlines() or [type(error).__name__])[0]
    return shown(str(reason))[:_MAX_NAME_LENGTH]
