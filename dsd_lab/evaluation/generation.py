"""Generation figures: FID, KID and label accuracy of samples on in-domain features.

FID and KID are torch-fidelity's own functions on our features. Samples are compared with the
training images; the real-against-real floor is the same comparison for held-out images, and with
`images: holdout` it has the same N and the same class mix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.core.network import Network
from dsd_lab.core.optimisation import load_tensors
from dsd_lab.core.randomness import generator
from dsd_lab.core.samplers import sample_latents
from dsd_lab.core.trainer import to_bytes
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.evaluation.naming import sampling_name, weights_name

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.fields import Generation, Trial

_SHOWN = 50


def load_network(trial: Trial, checkpoints: Path, data: DataSet, device: torch.device, weights: str) -> Network:
    """The network of a finished trial, with averaged (`ema`) or `trained` weights.

    Raises:
        CorruptCheckpoint: there is no checkpoint, or it is damaged or of another network.
    """
    found = list_checkpoints(checkpoints)
    if not found:
        raise CorruptCheckpoint(f"{checkpoints}: no checkpoint to load weights from")
    tensors, _ = load_checkpoint(found[0])
    network = Network(trial, data.channels, data.classes)
    load_tensors(network, "average" if weights == "ema" else "network", tensors, found[0])
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
            trial.objective,
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


def evaluate_generation(
    evaluation: Generation, trial: Trial, checkpoints: Path, data: DataSet, device: torch.device, cache: Path
) -> tuple[dict[str, float], Tensor]:
    """Metrics by name and the first samples [n, C, H, W] uint8.

    Names end in how they were measured (`indomain-n395-cfg1-heun25-holdout-ema0.99`), so that two
    different measurements never share a name. `psnr` is of held-out reconstructions, in dB.
    """
    network = load_network(trial, checkpoints, data, device, evaluation.weights)
    extractor = load_extractor(data, cache, device)
    y = labels_of(evaluation, data)
    samples = sample_images(
        network,
        trial,
        y,
        evaluation.sampler,
        evaluation.steps,
        evaluation.guidance,
        0,
        device,
        interval=interval_of(evaluation),
        rtol=evaluation.rtol,
        atol=evaluation.atol,
    )
    features, predicted = extractor.extract(samples, device)
    real, _ = extractor.extract(data.train.pixels, device)
    held, held_predicted = extractor.extract(data.holdout.pixels, device)
    average = weights_name(evaluation, trial)
    how = f"indomain-n{len(y)}-{sampling_name(evaluation)}-{average}"
    metrics = {
        f"fid/{how}": fid(features, real),
        f"kid/{how}": kid(features, real),
        f"label_accuracy/{how}": float((predicted == y).double().mean()),
        f"memorisation/nearest_train/{how}": nearest_train(samples, data.train.pixels),
        f"fid_floor/indomain-n{len(held)}": fid(held, real),
        f"kid_floor/indomain-n{len(held)}": kid(held, real),
        f"label_accuracy_floor/indomain-n{len(held)}": float((held_predicted == data.holdout.labels).double().mean()),
        f"memorisation/nearest_train_floor/n{len(held)}": nearest_train(data.holdout.pixels, data.train.pixels),
        f"psnr/n{len(held)}-{average}": psnr(network, data, device),
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}, samples[:_SHOWN]


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


def nearest_train(images: Tensor, train: Tensor) -> float:
    """Median over images of the RMS pixel distance to the nearest training image, in grey levels of 255."""
    flat, reference = images.flatten(1).float(), train.flatten(1).float()
    nearest = torch.cat([torch.cdist(chunk, reference).amin(1) for chunk in flat.split(256)])
    return float(nearest.median()) / math.sqrt(flat.shape[1])


@torch.no_grad()
def psnr(network: Network, data: DataSet, device: torch.device) -> float:
    """Peak signal-to-noise ratio of held-out reconstructions in dB, over all pixels."""
    total = 0.0
    for indices in torch.arange(len(data.holdout)).split(512):
        x, _ = data.holdout.at(indices, device)
        total += float((to_bytes(network.decode(network.encode(x))).double() - to_bytes(x).double()).square().sum())
    error = total / data.holdout.pixels.numel()
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf
