"""Random images instead of a dataset: the cost of a step does not depend on the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dsd_lab.core.data import DataSet
from dsd_lab.core.data.dataset import data_set
from dsd_lab.core.data.splits import Images
from dsd_lab.core.randomness import generator

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Trial

_GREY_BELOW = 32
"""Smaller images are grey, like digits and MNIST."""
_TRAIN = 1024


def random_images(trial: Trial) -> DataSet:
    """A random in-memory dataset of the trial's image size: grey with 10 classes if small, else colour with 1,000."""
    size = trial.network.image_size
    assert size is not None
    channels, classes = (1, 10) if size < _GREY_BELOW else (3, 1000)
    source = generator(0, "random images")

    def images(count: int) -> Images:
        pixels = torch.randint(0, 256, (count, channels, size, size), generator=source, dtype=torch.uint8)
        labels = torch.randint(0, classes, (count,), generator=source)
        labels[0] = classes - 1  # so that the number of classes is right
        return Images(pixels, labels)

    return data_set(images(_TRAIN), images(max(2, trial.probe.images)))
