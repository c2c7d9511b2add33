"""The results of a sweep as the report sees them: one `Result` a trial, with its history."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FINISHED = ("done", "stale")
"""States of a trial that has trained to its end: it has a verdict and its values are in the means."""


class History:
    """A trial's `history.parquet` by name, as arrays: a thousand trials are a few hundred megabytes.

    Args:
        steps: optimiser step of every row.
        names: metric or `spectrum/...` name of every row.
        index: which eigenvalue; -1 for metrics.
        values: of every row.
    """

    def __init__(self, steps: NDArray, names: NDArray, index: NDArray, values: Floats) -> None:
        known, codes = np.unique(names, return_inverse=True) if len(names) else (names, np.zeros(0, int))
        self._fill([str(name) for name in known], codes, steps, index, values)

    def _fill(self, known: list[str], codes: NDArray, steps: NDArray, index: NDArray, values: Floats) -> None:
        # One stable sort by (name, step, index); every name is then a slice.
        order = np.lexsort((index, steps, codes))
        bounds = np.searchsorted(codes[order], np.arange(len(known) + 1))
        self._slices = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(known)}
        self._steps, self._index, self._values = steps[order], index[order], values[order]

    @classmethod
    def empty(cls) -> History:
        """The history of a trial that never started."""
        return cls(np.zeros(0, np.int64), np.zeros(0, object), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def read(cls, path: Path) -> History:
        """The history that `dsd_lab.history.write_history` wrote."""
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

    def series(self, name: str) -> tuple[NDArray, Floats]:
        """Steps and values of a metric; empty where it was not measured."""
        part = self._slices.get(name, slice(0, 0))
        return self._steps[part], self._values[part]

    def spectrum(self, name: str) -> tuple[NDArray, Floats]:
        """Steps [S] and eigenvalues [S, K] of a spectrum (`spectrum/token`, ...); empty where it was not measured."""
        part = self._slices.get(name, slice(0, 0))
        steps = np.unique(self._steps[part])
        if not len(steps):
            return steps, np.zeros((0, 0))
        table = np.full((len(steps), int(self._index[part].max()) + 1), np.nan)
        table[np.searchsorted(steps, self._steps[part]), self._index[part]] = self._values[part]
        return steps, table


@dataclass(frozen=True)
class Result:
    """One trial of a sweep."""

    id: str
    variant: str
    point: dict[str, Any]
    seed: int
    size: str
    state: str
    steps: int
    """Steps that the spec asks for."""
    step: int
    """Steps that were made."""
    seconds: float
    """Time that the trial held its resources: training, probes, images, checkpoints."""
    error: str | None
    metrics: dict[str, float]
    """Last value of every metric, evaluations included."""
    history: History = field(default_factory=History.empty)
    description: dict[str, Any] = field(default_factory=dict)
    """trial.json: fields, data, provenance; empty where the trial never started."""
    folder: Path | None = None
    """Artifacts of the trial."""
    code_changes: str | None = None
    """Which training code trained from which step; None where it was one."""
    device_changes: str | None = None
    """The same of devices."""

    @cached_property
    def group(self) -> str:
        """Variant and grid point: what differs between rows of a table."""
        return ", ".join([self.variant, *filter(None, [point_name(self.point)])])

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    def last_probes(self, name: str, count: int) -> float | None:
        """Median of the last probes of a latent metric; None where there is none or it is not finite."""
        _, values = self.history.series(name)
        last = values[-count:].tolist()
        middle = math.nan if not last or any(map(math.isnan, last)) else median(last)
        return middle if math.isfinite(middle) else None


def point_name(point: dict[str, Any]) -> str:
    """`key=value, ...` of a grid point, keys without their section; empty without a grid."""
    return ", ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items())


def result_of(
    entry: dict[str, Any], state: str, tags: dict[str, str], metrics: dict[str, float], folder: Path | None
) -> Result:
    """A result from a manifest's row and what the store holds of it."""
    history, description = History.empty(), {}
    if folder is not None and (folder / "history.parquet").exists():
        history = History.read(folder / "history.parquet")
        description = json.loads((folder / "trial.json").read_text())
    return Result(
        id=entry["id"],
        variant=entry["variant"],
        point=entry["point"],
        seed=entry["seed"],
        size=entry["size"],
        state=state,
        steps=entry["steps"],
        step=int(tags.get("dsd.step", 0)),
        seconds=float(tags.get("dsd.seconds", 0.0)),
        error=tags.get("dsd.error"),
        metrics=metrics,
        history=history,
        description=description,
        folder=folder,
        code_changes=tags.get("dsd.code_changes"),
        device_changes=tags.get("dsd.device_changes"),
    )
