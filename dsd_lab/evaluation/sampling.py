"""Draws samples of a trained network in blocks; an image depends only on the seed, its index and its label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.diffusion.samplers import Interval, sample_latents, sampled_labels
from dsd_lab.core.model.network import Network
from dsd_lab.core.observing.pictures import to_bytes
from dsd_lab.core.randomness import generator
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint, load_tensors
from dsd_lab.core.training.ema import average_name
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.specs.trial import Generation, decay_of

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.trial import Trial

BLOCK = 256
"""Images per block. All processes use the same blocks, so the bits do not depend on which process draws one."""


def checkpoint_of(checkpoints: Path, step: int | str = "last") -> Path:
    """The checkpoint of a step, or the newest one.

    Raises:
        CorruptCheckpoint: there is none.
    """
    found = [path for path in list_checkpoints(checkpoints) if step == "last" or path.name == f"step-{step:09d}"]
    if not found:
        which = "no checkpoint" if step == "last" else f"no checkpoint of step {step}"
        raise CorruptCheckpoint(f"{checkpoints}: {which} to load weights from")
    return found[0]


def load_network(
    trial: Trial, checkpoints: Path, data: DataSet, device: torch.device, weights: str, step: int | str = "last"
) -> Network:
    """The network of a trial from a checkpoint, with averaged (`ema`, `ema:DECAY`) or `trained` weights.

    Raises:
        CorruptCheckpoint: the checkpoint does not exist, is damaged, or belongs to another network.
    """
    path = checkpoint_of(checkpoints, step)
    tensors, _ = load_checkpoint(path)
    network = Network(trial, data.channels, data.classes)
    decay = decay_of(weights, trial.training)
    name = "network" if decay is None else average_name(decay, trial.training.weight_ema)
    load_tensors(network, name, tensors, path)
    return network.to(device).eval()


@torch.no_grad()
def sample_blocks(
    network: Network,
    trial: Trial,
    y: Tensor,
    settings: Generation,
    seed: int,
    device: torch.device,
    chosen: Sequence[int] | None = None,
    size: int = BLOCK,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, images [n, C, H, W] uint8) of blocks for labels y [N].

    Image i depends on (seed, i, label), not on the block size or the chosen blocks.

    Args:
        network: network to sample from.
        trial: fields of the trial.
        y: labels of all images.
        settings: sampler, guidance, precision and checkpoint.
        seed: seed of the noise.
        device: device of the network.
        chosen: indices of blocks, ascending; None: all.
        size: images per block; the last may have fewer.
    """
    wanted = range(-(-len(y) // size)) if chosen is None else chosen
    step = settings.checkpoint if isinstance(settings.checkpoint, int) else trial.training.steps
    objective = trial.sampled_at(step)
    noise = _noise_blocks(network, len(y), seed, size)
    for number in wanted:
        e = next(rows for block, rows in noise if block == number)
        labels = y[number * size : number * size + len(e)].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            z = sample_latents(
                network,
                e.to(device),
                sampled_labels(labels, trial.labels.drop, network.classes),
                settings.sampler,
                settings.steps,
                settings.guidance,
                objective,
                interval=interval_of(settings),
                rtol=settings.rtol,
                atol=settings.atol,
                seed=seed,
                first=number * size,
            )
            images = network.decode(z)
        yield number, to_bytes(images)


def _noise_blocks(network: Network, count: int, seed: int, size: int) -> Iterator[tuple[int, Tensor]]:
    """Noise [n, T, c] of every block. It is one stream, so skipped blocks are drawn too."""
    numbers, source = network.tokens * network.latent_channels, generator(seed, "samples")
    # torch redraws the last 16 numbers of a tensor if its size is not a multiple of 16, so rows are padded.
    padded = -(-numbers // 16) * 16
    for block, first in enumerate(range(0, count, size)):
        drawn = torch.randn(min(size, count - first), padded, generator=source)
        yield block, drawn[:, :numbers].reshape(-1, network.tokens, network.latent_channels)


def sample_images(
    network: Network,
    trial: Trial,
    y: Tensor,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    device: torch.device,
    batch: int = BLOCK,
    *,
    interval: Interval | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Images [N, C, H, W] uint8 for labels y [N]. Image i depends on (seed, i, label), not on the batch size.

    `on_progress`, if given, is called after every batch with the number of images drawn so far and N.
    """
    ends: dict[str, Any] = {} if interval is None else {"guidance_interval": [interval.low, interval.high]}
    ends |= {"guidance_ends": "open" if interval is not None and interval.open else "closed"}
    given = {"sampler": sampler, "steps": steps, "guidance": guidance, "rtol": rtol, "atol": atol}
    settings = Generation.model_validate(given | ends | {"precision": precision})
    parts: list[Tensor] = []
    for _, images in sample_blocks(network, trial, y, settings, seed, device, size=batch):
        parts.append(images)
        if on_progress is not None:
            on_progress(sum(map(len, parts)), len(y))
    return torch.cat(parts)


def labels_of(evaluation: Generation, data: DataSet) -> Tensor:
    """Labels [N] of an evaluation's samples."""
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
    """The interval of guided times, or None."""
    if evaluation.guidance_interval is None:
        return None
    low, high = evaluation.guidance_interval
    return Interval(low, high, evaluation.guidance_ends == "open")
