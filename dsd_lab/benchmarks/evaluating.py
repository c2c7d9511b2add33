"""What sampling and feature extraction take over the forward passes that they cannot do without."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dsd_lab.benchmarks.clock import Clock
from dsd_lab.core.network import Network
from dsd_lab.core.randomness import generator
from dsd_lab.core.trainer import Trainer
from dsd_lab.evaluation.extractor import Extractor
from dsd_lab.evaluation.generation import sample_images

_BATCH, _STEPS = 256, 5
"""Images, which one batch of samples has, and steps of Heun's method: each time step has the same overhead."""


@torch.no_grad()
def evaluation_ratios(trainer: Trainer, clock: Clock, repeats: int) -> dict[str, list[float]]:
    """Time of drawing samples (`sampling`) and of finding features (`features`) over that of their passes, one value a repeat.

    The features are those of an in-domain extractor whose weights are random, which takes as long.
    """
    device, data = trainer.device, trainer.data
    images = max(1, min(_BATCH, len(data.train)))
    y = torch.randint(data.classes, (images,), generator=generator(0, "labels"))
    extractor = Extractor(data.channels, data.image_size, data.classes).to(device).eval()
    pixels = torch.randint(256, (images, data.channels, data.image_size, data.image_size), dtype=torch.uint8)
    network = trainer.average
    found: dict[str, list[float]] = {"sampling": [], "features": []}
    for repeat in range(repeats + 1):
        moments = [clock.now()]
        sample_images(network, trainer.trial, y, "heun", _STEPS, 1.0, 0, device)
        moments.append(clock.now())
        _passes(network, y.to(device))
        moments.append(clock.now())
        extractor.extract(pixels, device)
        moments.append(clock.now())
        extractor(torch.zeros(pixels.shape, device=device))
        moments.append(clock.now())
        sampling, passes, features, forward = (b - a for a, b in pairwise(moments))
        if repeat:  # the first loads kernels
            found["sampling"].append(sampling / passes)
            found["features"].append(features / forward)
    return found


def _passes(network: Network, y: Tensor) -> None:
    """The network's passes of a batch of samples, and nothing else."""
    z = torch.zeros(len(y), network.tokens, network.latent_channels, device=y.device)
    t = torch.zeros(len(y), device=y.device)
    for _ in range(2 * _STEPS - 1):
        network.denoise(z, t, y)
    network.decode(z)
