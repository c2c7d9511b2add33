"""Random pixels in the place of a data set: what a step costs does not depend on what the images show."""

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
"""Image sizes below this are taken for grey, as digits and MNIST are."""
_TRAIN = 1024


def random_images(trial: Trial) -> DataSet:
    """A data set of the trial's image size in memory: grey with 10 classes for small images, else colour with 1,000."""
    size = trial.network.image_size
    assert size is not None
    channels, classes = (1, 10) if size < _GREY_BELOW else (3, 1000)
    source = generator(0, "random images")

    def images(count: int) -> Images:
        pixels = torch.randint(0, 256, (count, channels, size, size), generator=source, dtype=torch.uint8)
        labels = torch.randint(0, classes, (count,), generator=source)
        labels[0] = classes - 1  # so that all classes are counted
        return Images(pixels, labels)

    return data_set(images(_TRAIN), images(max(2, trial.probe.images)))
