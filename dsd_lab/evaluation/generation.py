"""Generation figures: FID, KID and label accuracy of samples on in-domain features.

FID and KID are torch-fidelity's own functions on our features. Samples are compared with the
training images; the real-against-real floor is the same comparison for held-out images, and with
`images: holdout` it has the same N and the same class mix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.core.network import Network
from dsd_lab.core.optimisation import average_name, load_tensors
from dsd_lab.core.randomness import generator
from dsd_lab.core.samplers import sample_latents
from dsd_lab.core.trainer import to_bytes
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.specs.fields import decay_of

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet, Split
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
) -> Tensor:
    """Images [N, C, H, W] uint8 for labels y [N]. Image i depends on (seed, i, label), not on the batch size."""
    numbers = network.tokens * network.latent_channels
    # torch draws the last 16 numbers of a tensor anew where its size is no multiple of 16: rows are padded to one.
    drawn = torch.randn(len(y), -(-numbers // 16) * 16, generator=generator(seed, "samples"))
    noise = drawn[:, :numbers].reshape(len(y), network.tokens, network.latent_channels)
    parts = []
    for labels, e in zip(y.split(batch), noise.split(batch), strict=True):
        z = sample_latents(network, e.to(device), labels.to(device), sampler, steps, guidance, trial.sampled_objective)
        parts.append(to_bytes(network.decode(z)))
    return torch.cat(parts)


def evaluate_generation(
    evaluation: Generation, trial: Trial, checkpoints: Path, data: DataSet, device: torch.device, cache: Path
) -> tuple[dict[str, float], Tensor]:
    """Metrics by name and the first samples [n, C, H, W] uint8.

    Names end in how they were measured (`indomain-n395-cfg1-heun25-holdout-ema0.99`), so that two
    different measurements never share a name. `psnr` is of held-out reconstructions, in dB.
    """
    network = load_network(trial, checkpoints, data, device, evaluation.weights)
    extractor = load_extractor(data, cache, device)
    if evaluation.images == "holdout":
        y, mix = data.holdout.labels, "holdout"
    else:
        y, mix = torch.arange(evaluation.images) % data.classes, "balanced"
    samples = sample_images(network, trial, y, evaluation.sampler, evaluation.steps, evaluation.guidance, 0, device)
    features, predicted = extractor.extract(samples, device)
    real, _ = extractor.extract(data.train, device)
    held, held_predicted = extractor.extract(data.holdout, device)
    decay = decay_of(evaluation.weights, trial.training)
    average = "trained" if decay is None else f"ema{_exact(decay)}"
    how = f"indomain-n{len(y)}-cfg{_exact(evaluation.guidance)}-{evaluation.sampler}{evaluation.steps}-{mix}-{average}"
    metrics = {
        f"fid/{how}": fid(features, real),
        f"kid/{how}": kid(features, real),
        f"label_accuracy/{how}": float((predicted == y).double().mean()),
        f"memorisation/nearest_train/{how}": nearest_train(samples, data.train),
        f"fid_floor/indomain-n{len(held)}": fid(held, real),
        f"kid_floor/indomain-n{len(held)}": kid(held, real),
        f"label_accuracy_floor/indomain-n{len(held)}": float((held_predicted == data.holdout.labels).double().mean()),
        f"memorisation/nearest_train_floor/n{len(held)}": nearest_train(data.holdout, data.train),
        f"psnr/n{len(held)}-{average}": psnr(network, data, device),
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}, samples[:_SHOWN]


def _exact(number: float) -> str:
    """As short as tells it from every other number: 1, 1.25, 0.999."""
    return repr(float(number)).removesuffix(".0")


def fid(features: Tensor, reference: Tensor) -> float:
    """Frechet distance (Heusel et al., arXiv 1706.08500) between features [N, D], by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    parts = [fid_features_to_statistics(f.double()) for f in (features, reference)]
    return float(fid_statistics_to_metric(*parts, False)[KEY_METRIC_FID])


def kid(features: Tensor, reference: Tensor) -> float:
    """Kernel distance (Binkowski et al., arXiv 1801.01401), mean over 100 subsets of at most 200, by torch-fidelity."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(200, len(features), len(reference))
    found = kid_features_to_metric(features.double(), reference.double(), kid_subset_size=size, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def nearest_train(images: Tensor | Split, train: Tensor | Split) -> float:
    """Median over uint8 images of the RMS pixel distance to the nearest training image, in grey levels of 255."""
    nearest = []
    for some in _pieces(images, 4096):
        flat = some.flatten(1).float()
        found = torch.full((len(flat),), math.inf)
        for piece in _pieces(train, 8192):
            reference = piece.flatten(1).float()
            found = torch.minimum(found, torch.cat([torch.cdist(c, reference).amin(1) for c in flat.split(256)]))
        nearest.append(found)
    return float(torch.cat(nearest).median()) / math.sqrt(flat.shape[1])


def _pieces(images: Tensor | Split, size: int) -> Iterable[Tensor]:
    return images.split(size) if isinstance(images, Tensor) else (pixels for pixels, _ in images.batches(size))


@torch.no_grad()
def psnr(network: Network, data: DataSet, device: torch.device) -> float:
    """Peak signal-to-noise ratio of held-out reconstructions in dB, over all pixels."""
    total = 0.0
    for indices in torch.arange(len(data.holdout)).split(512):
        x, _ = data.holdout.at(indices, device)
        total += float((to_bytes(network.decode(network.encode(x))).double() - to_bytes(x).double()).square().sum())
    error = total / (len(data.holdout) * math.prod(data.holdout.shape))
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf
