"""A trial's history as a table, built from its spool: step, name, index, value.

`index` numbers the eigenvalues of `spectrum/...` and is null for metrics.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dsd_lab.home.spool import read_spool

COLUMNS = ("step", "name", "index", "value")


def history_table(spool: Path) -> pd.DataFrame:
    """All metrics and spectra of a spool."""
    rows: list[tuple[int, str, int | None, float]] = []
    for entry in read_spool(spool):
        found = entry.measured()
        if entry.kind in ("train", "probe") and entry.seconds is not None:
            found[f"seconds/{entry.kind}"] = entry.seconds
        rows += [(entry.step, name, None, value) for name, value in found.items()]
        for name, values in entry.spectra.items():
            rows += [(entry.step, f"spectrum/{name}", i, value) for i, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"step": "int64", "name": "string", "index": "Int64", "value": "float64"})


def write_history(spool: Path, path: Path) -> None:
    """Write the history of a spool as a parquet file."""
    history_table(spool).to_parquet(path, index=False)


def read_history(path: Path) -> pd.DataFrame:
    """Read a history written by `write_history`."""
    return pd.read_parquet(path)


Floats = NDArray[np.float64]


class History:
    """A trial's `history.parquet` as arrays by name. A thousand trials take a few hundred megabytes.

    Args:
        steps: optimiser step of every row [R].
        names: metric or `spectrum/...` name of every row [R].
        index: eigenvalue number, -1 for metrics [R].
        values: of every row [R].
    """

    def __init__(self, steps: NDArray[Any], names: NDArray[Any], index: NDArray[Any], values: Floats) -> None:
        known, codes = np.unique(names, return_inverse=True) if len(names) else (names, np.zeros(0, int))
        self._fill([str(name) for name in known], codes, steps, index, values)

    def _fill(
        self, known: list[str], codes: NDArray[Any], steps: NDArray[Any], index: NDArray[Any], values: Floats
    ) -> None:
        # A stable sort by (name, step, index) makes every name a slice.
        order = np.lexsort((index, steps, codes))
        bounds = np.searchsorted(codes[order], np.arange(len(known) + 1))
        self._slices = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(known)}
        self._steps, self._index, self._values = steps[order], index[order], values[order]

    @classmethod
    def empty(cls) -> History:
        """The history of a trial that was never started."""
        return cls(np.zeros(0, np.int64), np.zeros(0, object), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def read(cls, path: Path) -> History:
        """Read a history written by `write_history`."""
        table = pq.read_table(path, columns=["step", "name", "index", "value"], memory_map=False, use_threads=False)
        names = table["name"].combine_chunks().dictionary_encode()
        made = cls.__new__(cls)
        made._fill(
            names.dictionary.to_pylist(),
            names.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            table["step"].to_numpy(),
            table["index"].cast(pa.int64()).fill_null(-1).to_numpy(),
            table["value"].to_numpy(),
        )
        return made

    def series(self, name: str) -> tuple[NDArray[Any], Floats]:
        """Steps [S] and values [S] of a metric; empty where it was not measured."""
        part = self._slices.get(name, slice(0, 0))
        return self._steps[part], self._values[part]

    def mean_over(self, prefix: str) -> tuple[NDArray[Any], Floats]:
        """Steps [S] and mean over the metrics whose names begin with `prefix`, at the steps that all of them have."""
        series = [self.series(name) for name in self._slices if name.startswith(prefix)]
        if not series:
            return self.series(prefix)
        steps = reduce(np.intersect1d, (at for at, _ in series))
        return steps, np.asarray(np.mean([values[np.isin(at, steps)] for at, values in series], axis=0))

    def spectrum(self, name: str) -> tuple[NDArray[Any], Floats]:
        """Steps [S] and eigenvalues [S, K] of a spectrum (`spectrum/token`, ...); empty where it was not measured."""
        part = self._slices.get(name, slice(0, 0))
        steps = np.unique(self._steps[part])
        if not len(steps):
            return steps, np.zeros((0, 0))
        table = np.full((len(steps), int(self._index[part].max()) + 1), np.nan)
        table[np.searchsorted(steps, self._steps[part]), self._index[part]] = self._values[part]
        return steps, table
