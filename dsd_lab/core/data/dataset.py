"""A data set: training and held-out images, facts about them, and their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsd_lab.core.data.splits import Images, Split
from dsd_lab.core.randomness import generator
from dsd_lab.errors import BadInput

_NAMED = 20
"""Damaged images that a trial's record names at most; it counts all of them."""


@dataclass(frozen=True)
class DataSet:
    """Training and held-out images.

    `fingerprint` is a SHA-256 of the shapes, decoded pixels and labels of both splits. Resident and streamed images
    have the same one.
    """

    train: Split
    holdout: Split
    classes: int
    fingerprint: str
    class_names: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    """Images left out under `damaged: skip`, each with its reason."""
    holdout_from: str = ""
    """Origin of the held-out images: a folder or files of a split, or a fraction of the training images."""
    notes: tuple[str, ...] = ()
    """Files and folders that are not used, one line each."""
    files: tuple[str, ...] = ()
    """Paths of cached files, for images that a library downloaded; empty for others."""

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        return self.train.shape[1]

    @property
    def conditional(self) -> bool:
        """Whether there are two classes or more. Data without labels, or of one class, train unconditionally."""
        return self.classes > 1

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Counts, shape [C, H, W], and statistics of the training images: mean and standard deviation per channel,
        minimum and maximum, all in levels 0 to 255."""
        levels = self.train.levels.double()
        values, count = torch.arange(256).double(), levels.sum(1)
        mean = (levels @ values) / count
        variance = (levels @ values.square()) / count - mean.square()
        found = levels.sum(0).nonzero().flatten()
        return {
            "train": len(self.train),
            "holdout": len(self.holdout),
            "classes": self.classes,
            "shape": list(self.train.shape),
            "mean": [round(m, 6) for m in mean.tolist()],
            "std": [round(s, 6) for s in variance.clamp_min(0).sqrt().tolist()],
            "min": int(found[0]),
            "max": int(found[-1]),
            "train_by_class": torch.bincount(self.train.labels, minlength=self.classes).tolist(),
            "holdout_by_class": torch.bincount(self.holdout.labels, minlength=self.classes).tolist(),
            "class_names": list(self.class_names),
            "holdout_from": self.holdout_from,
            "notes": list(self.notes),
            "resident": isinstance(self.train, Images),
            "damaged": len(self.damaged),
            "damaged_named": list(self.damaged[:_NAMED]),
        }


def data_set(
    train: Images,
    holdout: Images,
    class_names: tuple[str, ...] = (),
    damaged: tuple[str, ...] = (),
    holdout_from: str = "",
    notes: tuple[str, ...] = (),
) -> DataSet:
    """A data set in memory."""
    digest = hashlib.sha256()
    for part in (train, holdout):
        digest.update(repr(tuple(part.pixels.shape)).encode())
        digest.update(part.pixels.contiguous().numpy().data)
        digest.update(part.labels.numpy().data)
    classes = count_classes(train.labels, holdout.labels)
    return DataSet(train, holdout, classes, digest.hexdigest(), class_names, damaged, holdout_from, notes)


def count_classes(*labels: Tensor) -> int:
    """The greatest label plus 1, over label tensors [N]."""
    return int(torch.cat(labels).max()) + 1


def check_classes(before: Tensor, after: Tensor, class_names: tuple[str, ...]) -> None:
    """Check that every class still has an image after damaged images were left out.

    Args:
        before: labels [N] of all training images.
        after: labels [M] of the images that are left.
        class_names: names by class number, for the message.

    Raises:
        BadInput: a class has lost all its images.
    """
    lost = sorted(set(before.unique().tolist()) - set(after.unique().tolist()))
    if lost:
        name = class_names[lost[0]] if lost[0] < len(class_names) else lost[0]
        raise BadInput(f"class {name}: every training image is damaged; remove the class, or replace them")


def held_out(labels: Tensor, fraction: float) -> Tensor:
    """Mask [N] of the held-out images, from labels [N]: a fraction of every class, the same for all seeds.

    Every class keeps at least one training image. Every class with two or more images has at least one held out.

    Raises:
        BadInput: no image can be held out.
    """
    order = torch.randperm(len(labels), generator=generator(0, "holdout"))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        held[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    if not bool(held.any()):
        raise BadInput(
            f"data.holdout: none of {len(labels)} images can be held out; at least one class needs two, or add a split val/"
        )
    return held


def share_held_out(fraction: float, classes: int) -> str:
    """Name of a split made by `held_out`, such as `22 % of every class`."""
    return f"{100 * fraction:g} % of {'every class' if classes > 1 else 'the images'}"


def split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Split images into training and held-out images by `held_out`."""
    held = held_out(images.labels, fraction)
    return Images(images.pixels[~held], images.labels[~held]), Images(images.pixels[held], images.labels[held])
