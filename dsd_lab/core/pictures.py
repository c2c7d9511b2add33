"""Pictures of a network: held-out images, their reconstructions, and samples, as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.samplers import sample_latents

if TYPE_CHECKING:
    from dsd_lab.core.network import Network
    from dsd_lab.core.probes import ProbeSet
    from dsd_lab.specs.fields import Trial

_STEPS = 20
"""Heun steps of the samples drawn while training; evaluations have settings of their own."""


@torch.no_grad()
def draw_pictures(network: Network, probe_set: ProbeSet, trial: Trial) -> dict[str, Tensor]:
    """Held-out images beside their reconstructions, and samples with the same images' labels, where there is a denoiser.

    Args:
        network: whose weights are shown.
        probe_set: images, labels and noise, the same at every step and for every variant.
        trial: with the objective of the stage at hand.

    Returns:
        uint8 [B, C, H, W] by name: `reconstruction` (image and reconstruction by turns), `samples`.
    """
    count = min(trial.observation.images, len(probe_set.x))
    x, y = probe_set.x[:count], probe_set.y[:count]
    pictures = {"reconstruction": torch.stack([x, network.decode(network.encode(x))], 1).flatten(0, 1)}
    if trial.objective.diffusion_weight > 0:
        z = sample_latents(network, probe_set.e[:count], y, "heun", _STEPS, 1.0, trial.objective)
        pictures["samples"] = network.decode(z)
    return {name: to_bytes(value) for name, value in pictures.items()}


def to_bytes(images: Tensor) -> Tensor:
    """Float images [..., H, W] in [-1, 1] -> uint8 on the CPU, rounded; pixels that are not finite form a chessboard."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    chessboard = (rows[:, None] + columns) % 2 * 2.0 - 1
    shown = torch.where(images.isfinite(), images.float(), chessboard)
    return ((shown + 1) * 127.5).round().clamp(0, 255).byte().cpu()
