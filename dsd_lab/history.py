"""A trial's history as a table, made from its spool: step, name, index, value.

`index` is null for metrics and counts the eigenvalues of `spectrum/...` names.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dsd_lab.spool_reader import read_spool

COLUMNS = ("step", "name", "index", "value")


def history_table(spool: Path) -> pd.DataFrame:
    """All metrics and spectra of a spool."""
    rows: list[tuple[int, str, int | None, float]] = []
    for entry in read_spool(spool):
        step = entry["step"]
        rows += [(step, name, None, value) for name, value in entry.get("metrics", {}).items()]
        for name, values in entry.get("spectra", {}).items():
            rows += [(step, f"spectrum/{name}", i, value) for i, value in enumerate(values)]
        if entry["kind"] in ("train", "probe"):
            rows.append((step, f"seconds/{entry['kind']}", None, entry["seconds"]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"step": "int64", "name": "string", "index": "Int64", "value": "float64"})


def write_history(spool: Path, path: Path) -> None:
    """The history of a spool as a parquet file."""
    history_table(spool).to_parquet(path, index=False)


def read_history(path: Path) -> pd.DataFrame:
    """A history written by `write_history`."""
    return pd.read_parquet(path)
