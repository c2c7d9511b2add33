"""The size of a trained network, from the header of its weights file: no tensor is read."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open


def parameters_in(folder: Path | None) -> int | None:
    """Trained weights of the network as deployed (EMA copies not counted); None where none were kept."""
    path = None if folder is None else folder / "final" / "weights.safetensors"
    if path is None or not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
