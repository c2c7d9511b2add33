"""scikit-learn's digits: a data set that needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dsd_lab.core.data.dataset import DataSet, data_set, share_held_out, split
from dsd_lab.core.data.decoding import framed_arrays
from dsd_lab.core.data.splits import Images

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data


def load_digits(spec: Data, cache: Path | None) -> DataSet:
    """1,797 images of 8x8 with 17 grey levels (UCI optdigits' test set)."""
    table = _table()
    pixels = framed_arrays(np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), spec)
    images = Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(table[:, -1].astype(np.int64)))
    names = tuple(map(str, range(10)))
    return data_set(*split(images, spec.holdout), names, holdout_from=share_held_out(spec.holdout, len(names)))


def _table() -> np.ndarray:
    """Pixels and label [1797, 65], from the file of `sklearn.datasets.load_digits`, whose import takes 1.4 s."""
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return np.loadtxt(Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
