"""scikit-learn's digits, which come with it: the data set of those who have none at hand."""

from __future__ import annotations

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
    from sklearn import datasets

    bunch = datasets.load_digits()
    pixels = framed_arrays(np.round(bunch.images * (255 / 16)).astype(np.uint8), spec)
    images = Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(bunch.target.astype(np.int64)))
    names = tuple(map(str, bunch.target_names))
    return data_set(*split(images, spec.holdout), names, holdout_from=share_held_out(spec.holdout, len(names)))
