"""Samples of a trained network, drawn batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion.samplers import Interval, sample_latents, sampled_labels
from dsd_lab.core.model.network import Network
from dsd_lab.core.observing.pictures import to_bytes
from dsd_lab.core.randomness import generator
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint, load_tensors
from dsd_lab.core.training.ema import average_name
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.specs.trial import decay_of

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.trial import Generation, Trial


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
    interval: Interval | None = None,
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
            sampled_labels(labels.to(device), trial.labels.drop, network.classes),
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
    if evaluation.labels == "training":
        ordered = data.train.labels.sort().values
        spread = ordered[(2 * torch.arange(evaluation.images) + 1) * len(ordered) // (2 * evaluation.images)]
        return spread[torch.randperm(evaluation.images, generator=generator(0, "labels"))]
    return torch.arange(evaluation.images) % data.classes


def interval_of(evaluation: Generation) -> Interval | None:
    """The times that are guided, where not all are."""
    if evaluation.guidance_interval is None:
        return None
    low, high = evaluation.guidance_interval
    return Interval(low, high, evaluation.guidance_ends == "open")
