"""Real images as an extractor sees them: the training set's features and statistics, cached, and samples of held-out images.

What is asked of `DataSet` for this is here.
"""

from __future__ import annotations

import hashlib
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
from dsd_lab.evaluation.features import Features, extract
from dsd_lab.files.atomic import read_cache, write_atomic, write_json
from dsd_lab.files.locks import locked

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from dsd_lab.core.data import DataSet, Split

_BLOCK = 8192
_MOST = 100_000
"""Training images whose features are kept; of a larger set, this many drawn once."""


def pixels_of(images: Split, indices: Tensor | None = None) -> Tensor:
    """Pixels [n, C, H, W] uint8 of some images, or of all, in memory."""
    if indices is None and isinstance(images, Images):
        return images.pixels
    return torch.cat(list(blocks_of(images, indices)))


def blocks_of(images: Split, indices: Tensor | None = None) -> Iterator[Tensor]:
    """The same in blocks of at most 8,192 images, which a set larger than memory allows."""
    if indices is None:
        yield from (pixels for pixels, _ in images.batches(_BLOCK))
    else:
        yield from (images.bytes_at(part) for part in indices.split(_BLOCK))


def reference_of(images: Split) -> Tensor | Iterator[Tensor]:
    """What samples are compared with pixel by pixel: whole where it is in memory, else in blocks."""
    return images.pixels if isinstance(images, Images) else blocks_of(images)


def statistics_path(cache: Path, data: DataSet, extractor: str) -> Path:
    """Where the features and statistics of the training images are cached: by data, extractor, size and number."""
    name = f"{data.fingerprint[:16]}-{extractor}-{data.image_size}px-n{min(len(data.train), _MOST)}"
    return cache / "statistics" / f"{name}.safetensors"


@dataclass(frozen=True)
class Real:
    """The real images of a data set on the features of one extractor."""

    data: DataSet
    extractor: FeatureExtractorBase
    device: torch.device
    cache: Path

    @cached_property
    def _named(self) -> str:
        """The extractor by name and weights."""
        digest = hashlib.sha256()
        for name, value in self.extractor.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return f"{self.extractor.name}-{digest.hexdigest()[:8]}"

    @cached_property
    def _train(self) -> dict[str, Tensor]:
        path = statistics_path(self.cache, self.data, self._named)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                features = self._of_train(spatial=False).features
                write_atomic(path, save({"features": features.contiguous()} | _tensors(statistics(features))))
        return load_file(path)

    def _of_train(self, spatial: bool) -> Features:
        chosen = None if len(self.data.train) <= _MOST else self.some(_MOST)
        return extract(self.extractor, blocks_of(self.data.train, chosen), self.device, spatial)

    @cached_property
    def spatial_statistics(self) -> Statistics:
        """Mean and covariance of the training images' features with places."""
        path = statistics_path(self.cache, self.data, f"{self._named}-spatial")
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                spatial = self._of_train(spatial=True).spatial
                assert spatial is not None
                write_atomic(path, save(_tensors(statistics(spatial))))
        return {name: value.numpy() for name, value in load_file(path).items()}

    def numbers(self, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `make` measures of real images alone and is finite, kept in the home folder beside their statistics.

        Args:
            key: all that it depends on beside the data and the extractor.
            make: what is measured where the home folder does not know it.
        """
        path = statistics_path(self.cache, self.data, self._named).with_suffix(".json")
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
        """Mean and covariance of them."""
        return {name: self._train[name].numpy() for name in ("mu", "sigma")}

    def some(self, count: int) -> Tensor:
        """Indices of training images, drawn once for all evaluations."""
        return torch.randperm(len(self.data.train), generator=generator(0, "some real images"))[:count]

    def neighbours(self, count: int) -> Tensor:
        """Features of as many training images as there are samples, for precision and recall; all where there are fewer."""
        return self.features[torch.randperm(len(self.features), generator=generator(0, "neighbours"))[:count]]

    @cached_property
    def held(self) -> Features:
        """Features and class scores of the held-out images."""
        return extract(self.extractor, pixels_of(self.data.holdout), self.device)

    def like(self, y: Tensor) -> tuple[Tensor, Tensor, int]:
        """Features, scores and labels' source of real images with the number of labels y and, as far as it goes, their classes.

        Held-out images first; where they are too few, training images fill up, and the number of those
        is returned. Training images are nearer to themselves than any others can be, so names say it.
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
    """Indices into labels [M] whose classes are those of y [N] as far as they go, and how many of N are lacking.

    All of them, in their order, where N = M.
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
