"""What sampling and feature extraction take over the forward passes that they cannot do without."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsd_lab.bench.clock import Clock, spread
from dsd_lab.core.data.splits import as_floats
from dsd_lab.core.model.network import Network
from dsd_lab.core.randomness import generator
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.evaluation.extractor import Extractor
from dsd_lab.evaluation.sampling import sample_images

_BATCH, _STEPS = 256, 5
"""Images, which one batch of samples has, and steps of Heun's method: each time step has the same overhead."""
_LEAST = 0.2
"""Seconds that either side of a ratio is timed for."""


@torch.no_grad()
def evaluation_ratios(trainer: Trainer, repeats: int) -> dict[str, dict[str, float]]:
    """Time of drawing samples (`sampling`) and of finding features (`features`) over that of their passes.

    The features are those of an in-domain extractor whose weights are random, which takes as long.
    """
    device, data, clock = trainer.device, trainer.data, Clock(trainer.device)
    images = max(1, min(_BATCH, len(data.train)))
    y = torch.randint(data.classes, (images,), generator=generator(0, "labels"))
    extractor = Extractor(data.channels, data.image_size, data.classes).to(device).eval()
    pixels = torch.randint(256, (images, data.channels, data.image_size, data.image_size), dtype=torch.uint8)
    network, values = trainer.average, as_floats(pixels).to(device)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "sampling": (
            lambda: sample_images(network, trainer.trial, y, "heun", _STEPS, 1.0, 0, device),
            lambda: _passes(network, y.to(device)),
        ),
        "features": (lambda: extractor.extract(pixels, device), lambda: extractor(values)),
    }
    return {name: spread([_ratio(*pair, clock) for _ in range(repeats)]) for name, pair in pairs.items()}


def _ratio(whole: Callable[[], object], passes: Callable[[], object], clock: Clock) -> float:
    """Time of the one over that of the other, turn by turn for as long as a clock needs to be sure of them."""
    whole(), passes()  # loads kernels, and fills caches that another pair had emptied
    taken = [0.0, 0.0]
    while min(taken) < _LEAST:
        for i, part in enumerate((whole, passes)):
            began = clock.now()
            part()
            taken[i] += clock.now() - began
    return taken[0] / taken[1]


def _passes(network: Network, y: Tensor) -> None:
    """The network's passes of a batch of samples, and nothing else."""
    z = torch.zeros(len(y), network.tokens, network.latent_channels, device=y.device)
    t = torch.zeros(len(y), device=y.device)
    for _ in range(2 * _STEPS - 1):
        network.denoise(z, t, y)
    network.decode(z)
