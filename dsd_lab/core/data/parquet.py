"""The Hugging Face image layout: a column of {bytes, path} and one of labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.data.assembly import assemble
from dsd_lab.core.data.dataset import DataSet
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

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_ROWS = 64
"""Rows that are read at a time."""


def load_parquet(spec: Data, cache: Path | None) -> DataSet:
    """`train*.parquet`; `test*.parquet`, else `validation*.parquet`, is held out where it is there.

    Labels are whole numbers from 0 on; the classes are those that occur, in the order of their numbers.
    """
    assert spec.path is not None
    folder = Path(spec.path)
    files = sorted(folder.glob("train*.parquet"))
    if not files:
        raise BadInput(f"{shown(folder)}: no train*.parquet in this folder")
    tests = sorted(folder.glob("test*.parquet")) or sorted(folder.glob("validation*.parquet"))
    train, holdout = ParquetRecords(files, spec), ParquetRecords(tests, spec) if tests else None
    parts = [train] if holdout is None else [train, holdout]
    labels, known = numbered(*(part.read_labels() for part in parts))
    for part, numbers in zip(parts, labels, strict=True):
        part.labels = numbers
    names = train.class_names
    classes = tuple(names[label] if label < len(names) else str(label) for label in known)
    return assemble(spec, train, holdout, classes, cache)


class ParquetRecords(Records):
    """The rows of some files. A row cannot be read without its row group, so a stream unpacks them first."""

    def __init__(self, files: list[Path], spec: Data) -> None:
        self._files, self._image, self._label = files, spec.image_column, spec.label_column
        self._starts = [0]
        self.class_names: list[str] = []
        self.labels = torch.empty(0, dtype=torch.int64)

    def read_labels(self) -> np.ndarray:
        """The labels [N] as the files have them."""
        import pyarrow

        parts = []
        for path in self._files:
            table = self._opened(path)
            rows = table.metadata.num_rows
            if not rows:
                raise BadInput(f"{shown(path)}: holds no images")
            kind = table.schema_arrow.field(self._label).type
            if not pyarrow.types.is_integer(kind):
                raise BadInput(f"{shown(path)}: the labels are {kind}, not whole numbers")
            found = table.read(columns=[self._label])[self._label].to_pylist()
            for row, label in enumerate(found):
                if label is None or label < 0:
                    raise BadInput(
                        f"{shown(path)}: row {row}: the label {label} is no class; classes are numbered from 0"
                    )
            parts.append(np.array(found, dtype=np.int64))
            self._starts.append(self._starts[-1] + rows)
            self.class_names = self.class_names or class_names_in(table.schema_arrow.metadata, self._label)
        return np.concatenate(parts)

    def _opened(self, path: Path) -> Any:
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(path)
            missing = [name for name in (self._image, self._label) if name not in table.schema_arrow.names]
        except (OSError, pyarrow.ArrowException) as error:
            raise BadInput(f"{shown(path)}: not a parquet file: {str(error).splitlines()[0]}") from None
        if missing:
            raise BadInput(
                f"{shown(path)}: no column {missing[0]!r} (it has {', '.join(table.schema_arrow.names)}); data.image_column and data.label_column name them"
            )
        kind = table.schema_arrow.field(self._image).type
        fields = [kind.field(i).name for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        if "bytes" not in fields:
            raise BadInput(f"{shown(path)}: the column {self._image!r} is {kind}, not images as {{bytes, path}}")
        return table

    def items(self) -> Iterator[Item]:
        import pyarrow

        for path in self._files:
            row = 0
            try:
                for batch in self._opened(path).iter_batches(_ROWS, columns=[self._image]):
                    for image in batch.column(0).to_pylist():
                        where = f"{shown(path)}: row {row} ({shown(str(image and image.get('path')))})"
                        yield where, partial(_bytes, image)
                        row += 1
            except (OSError, pyarrow.ArrowException) as error:
                raise BadInput(f"{shown(path)}: damaged after row {row}: {str(error).splitlines()[0]}") from None

    def stamp(self) -> Stamp:
        return stamp_of(self._files)

    def stored(self, cache: Path | None) -> StoredRecords:
        return pack(self, cache, self._image, self._name)

    def _name(self, i: int) -> str:
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        return f"{shown(self._files[file])}: row {i - self._starts[file]}"


def _bytes(image: dict[str, Any] | None) -> bytes | None:
    return image["bytes"] if image else None
