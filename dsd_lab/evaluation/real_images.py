"""Features and statistics of real images: those of the training set, cached, and those of held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dsd_lab.core.data import Images
from dsd_lab.core.randomness import generator
from dsd_lab.evaluation.distances import Statistics, statistics
from dsd_lab.evaluation.features import Features, digest_name, extract
from dsd_lab.files.atomic import read_cache, write_atomic, write_json
from dsd_lab.files.locks import locked

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from dsd_lab.core.data import DataSet, Split

_BLOCK = 8192
_MAX_IMAGES = 100_000
"""Maximum number of training images for features; of a larger set, a fixed random subset."""


def pixels_of(images: Split, indices: Tensor | None = None) -> Tensor:
    """Pixels [n, C, H, W] uint8 of some images, or of all, in memory."""
    if indices is None and isinstance(images, Images):
        return images.pixels
    return torch.cat(list(blocks_of(images, indices)))


def blocks_of(images: Split, indices: Tensor | None = None) -> Iterator[Tensor]:
    """Blocks [n, C, H, W] uint8 of at most 8,192 images, for data sets larger than memory."""
    if indices is None:
        yield from (pixels for pixels, _ in images.batches(_BLOCK))
    else:
        yield from (images.bytes_at(part) for part in indices.split(_BLOCK))


def reference_of(images: Split) -> Tensor | Iterator[Tensor]:
    """Pixels [N, C, H, W] uint8 to compare samples with: one tensor if they are in memory, else blocks."""
    return images.pixels if isinstance(images, Images) else blocks_of(images)


def statistics_path(cache: Path, data: DataSet, extractor: str) -> Path:
    """Cache file for features and statistics of the training images, by data, extractor, size and number."""
    name = f"{data.fingerprint[:16]}-{extractor}-{data.image_size}px-n{min(len(data.train), _MAX_IMAGES)}"
    return cache / "statistics" / f"{name}.safetensors"


@dataclass(frozen=True)
class Real:
    """The real images of a data set, in the features of one extractor."""

    data: DataSet
    extractor: FeatureExtractorBase
    device: torch.device
    cache: Path

    @cached_property
    def named(self) -> str:
        """Name of the extractor with a hash of its weights."""
        return digest_name(self.extractor)

    @cached_property
    def _train(self) -> dict[str, Tensor]:
        path = statistics_path(self.cache, self.data, self.named)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                features = self._of_train(spatial=False).features
                write_atomic(path, save({"features": features.contiguous()} | _tensors(statistics(features))))
        return load_file(path)

    def _of_train(self, spatial: bool) -> Features:
        chosen = None if len(self.data.train) <= _MAX_IMAGES else self.some(_MAX_IMAGES)
        return extract(self.extractor, blocks_of(self.data.train, chosen), self.device, spatial)

    @cached_property
    def spatial_statistics(self) -> Statistics:
        """Mean and covariance of the training images' spatial features."""
        path = statistics_path(self.cache, self.data, f"{self.named}-spatial")
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                spatial = self._of_train(spatial=True).spatial
                assert spatial is not None
                write_atomic(path, save(_tensors(statistics(spatial))))
        return {name: value.numpy() for name, value in load_file(path).items()}

    def numbers(self, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The finite metrics returned by `make`, cached in the home folder.

        Args:
            key: everything that they depend on, except data and extractor.
            make: computes metrics of real images; called if they are not cached.
        """
        path = statistics_path(self.cache, self.data, self.named).with_suffix(".json")
        with locked(path.with_suffix(".lock")):
            known = read_cache(path)
            if key not in known:
                known[key] = {name: value for name, value in make().items() if math.isfinite(value)}
                write_json(path, known)
        found: dict[str, float] = known[key]
        return found

    @property
    def features(self) -> Tensor:
        """Features [N, D] of the training images."""
        return self._train["features"]

    @property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features of the training images."""
        return {name: self._train[name].numpy() for name in ("mu", "sigma")}

    def some(self, count: int) -> Tensor:
        """Random indices [count] of training images, the same for all evaluations."""
        return torch.randperm(len(self.data.train), generator=generator(0, "some real images"))[:count]

    def neighbours(self, count: int) -> Tensor:
        """Features of at most `count` random training images, for precision and recall with as many samples."""
        return self.features[torch.randperm(len(self.features), generator=generator(0, "neighbours"))[:count]]

    @cached_property
    def held(self) -> Features:
        """Features and class scores of the held-out images."""
        return extract(self.extractor, pixels_of(self.data.holdout), self.device)

    def like(self, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Features and scores of as many real images as labels y [N], with the same classes if possible.

        Held-out images come first. If they are too few, training images are added, and their number is returned too: it
        becomes part of metric names, since training images are compared with themselves.
        """
        held, more = matching(self.data.holdout.labels, y)
        features, scores = self.held.features[held], self.held.scores[held]
        if more:
            filling = self.some(more)
            found = extract(self.extractor, pixels_of(self.data.train, filling), self.device)
            features, scores = torch.cat([features, found.features]), torch.cat([scores, found.scores])
        return features, scores, len(features) - len(held)


def _tensors(found: Statistics) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in found.items()}


def matching(labels: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Indices into labels [M] with the classes of y [N] as far as possible, and the number of missing images.

    If N = M, all indices in their order.
    """
    if len(y) == len(labels):
        return torch.arange(len(labels)), 0
    order = torch.randperm(len(labels), generator=generator(0, "floor"))
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(*(part.tolist() for part in y.unique(return_counts=True)), strict=True):
        taken[order[labels[order] == label][:count]] = True
    rest = order[~taken[order]][: max(0, len(y) - int(taken.sum()))]
    chosen = torch.cat([taken.nonzero()[:, 0], rest])
    return chosen, len(y) - len(chosen)
