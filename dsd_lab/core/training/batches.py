"""What a training step is made from: the images and random numbers of its global batch.

Everything is a function of (seed, step), each purpose with a generator of its own, so that a resumed
trial draws what an uninterrupted one draws. The order of the draws of a generator never changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion.paths import draw_times
from dsd_lab.core.randomness import Draws, batch_indices, generator
from dsd_lab.core.training.augmentation import augmented, hidden_tokens

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Trial


def indices_of(trial: Trial, seed: int, step: int, images: int) -> Tensor:
    """Which training images the batch of a step has [B]."""
    return batch_indices(seed, step, trial.training.batch_size, images)


def draw_batch(
    trial: Trial,
    seed: int,
    step: int,
    data: DataSet,
    network: Network,
    device: torch.device,
    rows: Tensor | None = None,
) -> tuple[Tensor, Draws]:
    """Images [B, C, H, W] in [-1, 1], augmented, and the random numbers of the step.

    `rows` chooses images of the batch: the numbers are drawn for all of them, and no other image is read.
    """
    size, again = trial.training.batch_size, trial.training.noise_draws
    indices = indices_of(trial, seed, step, len(data.train))
    x, y = data.train.at(indices if rows is None else indices[rows], device)
    source = generator(seed, "step", step, device)
    t = draw_times(trial.time, again * size, source)
    shape = (network.tokens, network.latent_channels)
    e = torch.randn((again * size, *shape), generator=source, device=device)
    dropped = torch.rand(again * size, generator=source, device=device) < trial.labels.drop
    noise = torch.randn((size, *shape), generator=source, device=device) if trial.latent.decoder_noise > 0 else None
    latent = generator(seed, "latent", step, device) if network.normaliser.noisy else None
    latent_e = None if latent is None else torch.randn((size, *shape), generator=latent, device=device)
    x = augmented(x, trial.augmentation, seed, step, size, None if rows is None else rows.to(device))
    hidden = hidden_tokens(trial.augmentation, size, network.tokens, seed, step, device)
    drawn = Draws(t, e, dropped, noise, latent_e, hidden)
    drawn = drawn if rows is None else drawn.of_images(rows.to(device), size)
    return x, replace(drawn, y=y.repeat(again).masked_fill(drawn.y, data.classes), labels=y)
