"""The results of a sweep as the report sees them: one `Result` a trial, with its history and verdict inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dsd_lab.history import read_history

VERDICT_METRICS = (
    "latent/variance",
    "latent/effective_rank/token",
    "latent/effective_rank/image",
    "latent/capacity_bits/token",
)


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
    step: int
    seconds: float
    error: str | None
    metrics: dict[str, float]
    """Last value of every metric, evaluations included."""
    history: pd.DataFrame
    """Columns step, name, index, value; empty where the trial never started."""
    description: dict[str, Any] = field(default_factory=dict)
    """trial.json: fields, data, provenance."""
    folder: Path | None = None

    @property
    def group(self) -> str:
        """Variant and grid point: what differs between rows of a table."""
        return group_name(self.variant, self.point)

    @cached_property
    def _series(self) -> dict[str, pd.Series]:
        scalars = self.history[self.history["index"].isna()]
        return {str(name): part.set_index("step")["value"] for name, part in scalars.groupby("name")}

    def series(self, name: str) -> pd.Series:
        """A metric over steps; empty where it was not measured."""
        return self._series.get(name, pd.Series(dtype="float64"))

    def spectrum(self, name: str) -> pd.DataFrame:
        """A spectrum (`spectrum/token`, ...) as steps x eigenvalues."""
        part = self.history[(self.history["name"] == name) & self.history["index"].notna()]
        return part.pivot(index="step", columns="index", values="value")

    def last_probes(self, name: str, count: int) -> float | None:
        """Median of the last probes of a latent metric; None where there is none."""
        series = self.series(name)
        return float(series.sort_index().iloc[-count:].median()) if len(series) else None


def group_name(variant: str, point: dict[str, Any]) -> str:
    """`variant` or `variant, key=value`."""
    return ", ".join([variant, *(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in point.items())])


def result_of(
    entry: dict[str, Any], state: str, tags: dict[str, str], metrics: dict[str, float], folder: Path | None
) -> Result:
    """A result from a manifest's row and what the store holds of it."""
    history = pd.DataFrame(columns=["step", "name", "index", "value"])
    description: dict[str, Any] = {}
    if folder is not None and (folder / "history.parquet").exists():
        history = read_history(folder / "history.parquet")
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
    )
