"""What the evaluations of one trial share: its network, its samples, its real images."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.model.network import Network
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.evaluation.metric_names import sampling_name
from dsd_lab.evaluation.reconstruction import reconstructions
from dsd_lab.evaluation.reference import inception_path, read_reference
from dsd_lab.evaluation.sampling import interval_of, load_network, sample_images
from dsd_lab.home.home import Home
from dsd_lab.home.names import extractor_path

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.evaluation.distances import Statistics
    from dsd_lab.evaluation.real_images import Real
    from dsd_lab.specs.trial import Generation, Trial


@dataclass
class Bench:
    """What the evaluations of one trial share, so that equal samples are drawn once and equal features found once.

    Of samples it keeps the last ones: evaluations of the same samples should follow each other.
    """

    trial: Trial
    checkpoints: Path
    data: DataSet
    device: torch.device
    home: Home
    told: Callable[[int, int], None] | None = None
    """Called with the images drawn so far and the number asked for."""
    _kept: dict[Hashable, Any] = field(default_factory=dict)
    _samples: dict[Hashable, Any] = field(default_factory=dict)
    """What belongs to the last samples; the first key says which those are."""

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def network(self, weights: str) -> Network:
        found: Network = self.once(
            ("network", weights),
            lambda: load_network(self.trial, self.checkpoints, self.data, self.device, weights),
        )
        return found

    def samples(self, e: Generation, y: Tensor) -> Tensor:
        """Images [N, C, H, W] uint8, one a label."""
        key = (sampling_name(e), len(y), e.weights)
        if key not in self._samples:
            self._samples = {key: self._draw(e, y)}
        found: Tensor = self._samples[key]
        return found

    def of_samples(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives for the last samples, made once a key."""
        if key not in self._samples:
            self._samples[key] = make()
        return self._samples[key]

    def _draw(self, e: Generation, y: Tensor) -> Tensor:
        return sample_images(
            self.network(e.weights),
            self.trial,
            y,
            e.sampler,
            e.steps,
            e.guidance,
            0,
            self.device,
            interval=interval_of(e),
            rtol=e.rtol,
            atol=e.atol,
            told=self.told,
        )

    def reconstructions(self, weights: str) -> Tensor:
        """Held-out images [N, C, H, W] uint8 through encoder and decoder."""
        found: Tensor = self.once(
            ("reconstructions", weights), lambda: reconstructions(self.network(weights), self.data, self.device)
        )
        return found

    def real(self, e: Generation) -> Real:
        """The real images on the features that an evaluation asks for."""
        from dsd_lab.evaluation import features  # imports torch-fidelity: only where something is measured
        from dsd_lab.evaluation.real_images import Real

        def make() -> Real:
            if e.extractor == "inception":
                extractor = features.inception(inception_path(e, self.home))
            else:
                load_extractor(self.data, self.home.cache, self.device)
                extractor = features.indomain(
                    extractor_path(self.home.cache, self.data.fingerprint, self.data.conditional)
                )
            return Real(self.data, extractor, self.device, self.home.cache)

        found: Real = self.once(("real", e.extractor), make)
        return found

    def extract(self, e: Generation, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and class scores of images on the extractor that an evaluation asks for."""
        from dsd_lab.evaluation.features import extract

        return extract(self.real(e).extractor, images, self.device)

    def reference(self, e: Generation) -> Statistics:
        """What FID is measured against: published statistics, or the training images'."""
        if e.reference is None:
            return self.real(e).statistics
        found: Statistics = self.once(e.reference, lambda: read_reference(e))
        return found
