"""The images and random numbers of a training step's global batch.

They are a function of (seed, step), so a resumed trial draws the same as an uninterrupted one. Each purpose has its own
generator. The order of the draws from a generator must not change.
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
    """Indices [B] of the training images in the batch of a step."""
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
    """Augmented images [B, C, H, W] in [-1, 1] and the random numbers of a step.

    With `rows` [n], only these images of the batch are read and returned; random numbers are drawn for the whole batch.
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
