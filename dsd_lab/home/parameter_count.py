"""Size of a trained network from the header of its weights file, without reading tensors."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from dsd_lab.home.trial_records import Parameters

AVERAGE = "average."
"""Prefix of the deployed network's tensors in a checkpoint."""


def parameters_in(folder: Path | None) -> int | None:
    """Parameters of the deployed network (copies not counted); None where no weights were kept."""
    if folder is None:
        return None
    path, counted = folder / "final" / "weights.safetensors", folder / "final" / "parameters.json"
    if path.exists():
        return _count(path)
    found = Parameters.read(counted)
    return None if found is None else found.parameters


def average_parameters(checkpoint: Path) -> int:
    """As `parameters_in`, for a checkpoint's tensors file."""
    return _count(checkpoint, AVERAGE)


def _count(path: Path, prefix: str = "") -> int:
    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
