"""One trial evaluated: weights from its checkpoint, samples of them, and the metrics that an evaluation asks for.

Samples are compared with the training images, or with published statistics. The real-against-real
floor is the same comparison for real images: all held-out ones, and as many as there are samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.core.network import Network
from dsd_lab.core.optimisation import average_name, load_tensors
from dsd_lab.core.pictures import to_bytes
from dsd_lab.core.randomness import generator
from dsd_lab.core.samplers import sample_latents
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.evaluation.extractor import extractor_path, load_extractor
from dsd_lab.evaluation.naming import sampling_name
from dsd_lab.evaluation.reconstruction import reconstructions
from dsd_lab.evaluation.reference import inception_path, read_reference
from dsd_lab.home import Home
from dsd_lab.specs.fields import OF_ENCODER, OF_IMAGES, decay_of
from dsd_lab.written import NOT_FINITE, finite

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.evaluation.distances import Statistics
    from dsd_lab.evaluation.real import Real
    from dsd_lab.specs.fields import Generation, Trial

_SHOWN = 50


def load_network(trial: Trial, checkpoints: Path, data: DataSet, device: torch.device, weights: str) -> Network:
    """The network of a finished trial, with averaged (`ema`, `ema:DECAY`) or `trained` weights.

    Raises:
        CorruptCheckpoint: there is no checkpoint, or it is damaged or of another network.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        raise CorruptCheckpoint(f"{checkpoints}: no checkpoint to load weights from")
    tensors, _ = load_checkpoint(found[0])
    network = Network(trial, data.channels, data.classes)
    decay = decay_of(weights, trial.training)
    name = "network" if decay is None else average_name(decay, trial.training.weight_ema)
    load_tensors(network, name, tensors, found[0])
    return network.to(device).eval()


@torch.no_grad()
def sample_images(
    network: Network,
    trial: Trial,
    y: Tensor,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    device: torch.device,
    batch: int = 256,
    *,
    interval: tuple[float, float] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    told: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Images [N, C, H, W] uint8 for labels y [N]. Image i depends on (seed, i, label), not on the batch size.

    `told`, where it is given, is called with the images drawn so far and with N after every batch.
    """
    numbers = network.tokens * network.latent_channels
    # torch draws the last 16 numbers of a tensor anew where its size is no multiple of 16: rows are padded to one.
    drawn = torch.randn(len(y), -(-numbers // 16) * 16, generator=generator(seed, "samples"))
    noise = drawn[:, :numbers].reshape(len(y), network.tokens, network.latent_channels)
    parts: list[Tensor] = []
    for labels, e in zip(y.split(batch), noise.split(batch), strict=True):
        z = sample_latents(
            network,
            e.to(device),
            labels.to(device),
            sampler,
            steps,
            guidance,
            trial.sampled_objective,
            interval=interval,
            rtol=rtol,
            atol=atol,
            seed=seed,
            first=len(parts) * batch,
        )
        parts.append(to_bytes(network.decode(z)))
        if told is not None:
            told(min(len(parts) * batch, len(y)), len(y))
    return torch.cat(parts)


def labels_of(evaluation: Generation, data: DataSet) -> Tensor:
    """Labels [N] of the images that an evaluation asks for."""
    if evaluation.images == "holdout":
        return data.holdout.labels
    if evaluation.labels == "random":
        return torch.randint(data.classes, (evaluation.images,), generator=generator(0, "labels"))
    return torch.arange(evaluation.images) % data.classes


def interval_of(evaluation: Generation) -> tuple[float, float] | None:
    """The times that are guided, where not all are."""
    return (
        None
        if evaluation.guidance_interval is None
        else (evaluation.guidance_interval[0], evaluation.guidance_interval[1])
    )


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
        from dsd_lab.evaluation.real import Real

        def make() -> Real:
            if e.extractor == "inception":
                extractor = features.inception(inception_path(e, self.home))
            else:
                load_extractor(self.data, self.home.cache, self.device)
                extractor = features.indomain(extractor_path(self.home.cache, self.data.fingerprint))
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


def evaluate_generation(
    evaluation: Generation,
    trial: Trial,
    checkpoints: Path,
    data: DataSet,
    device: torch.device,
    cache: Path,
    bench: Bench | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Metrics by name and the first images [n, C, H, W] uint8 that they are of.

    Names end in how they were measured (`indomain-n395-cfg1-heun25-holdout-ema0.99`), so that two
    different measurements never share a name. `psnr` and `ssim` are of held-out reconstructions. What
    has no finite value, or is of weights that are not finite, is left out, and a name below `not_finite/` says so.

    Args:
        evaluation: what is measured.
        trial: fields of the finished trial.
        checkpoints: its folder of them.
        data: its images.
        device: that it is evaluated on.
        cache: of the home folder; extractors and statistics of real images are kept there.
        bench: what evaluations of the same trial have found before.
    """
    from dsd_lab.evaluation.measuring import floors, of_encoder, of_images  # imports torch-fidelity

    bench = bench or Bench(trial, checkpoints, data, device, Home(cache.parent))
    metrics: dict[str, float] = {}
    shown = None
    if not all(bool(p.isfinite().all()) for p in bench.network(evaluation.weights).parameters()):
        # Their images are a chessboard, which is an image like another to an extractor.
        weights = {f"{NOT_FINITE}weights/{evaluation.weights.replace(':', '')}": 1.0}
        return weights, bench.reconstructions(evaluation.weights)[:_SHOWN]
    if set(evaluation.measured) & set(OF_IMAGES):
        y = labels_of(evaluation, data)
        shown = bench.samples(evaluation, y)
        metrics |= of_images(evaluation, bench, shown, y)
        metrics |= floors(evaluation, bench, y)
    if set(evaluation.measured) & set(OF_ENCODER):
        metrics |= of_encoder(evaluation, bench)
    return finite(metrics), (bench.reconstructions(evaluation.weights) if shown is None else shown)[:_SHOWN]
