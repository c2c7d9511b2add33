"""Pictures of a network: held-out images, their reconstructions, and samples, as bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion.samplers import sample_latents, sampled_labels
from dsd_lab.files.atomic import write_atomic

if TYPE_CHECKING:
    from dsd_lab.core.model.network import Network
    from dsd_lab.core.observing.probes import ProbeSet
    from dsd_lab.specs.trial import Trial

_STEPS = 20
"""Heun steps of the samples drawn during training; evaluations have their own settings."""


@torch.no_grad()
def draw_pictures(network: Network, probe_set: ProbeSet, trial: Trial) -> dict[str, Tensor]:
    """Reconstructions of held-out images, and samples with their labels if there is a denoiser.

    Args:
        network: network to draw from.
        probe_set: images, labels and noise, the same at every step and for every variant.
        trial: trial with the objective of the current stage.

    Returns:
        uint8 [B, C, H, W] by name: `reconstruction` (image and reconstruction alternate), `samples`.
    """
    count = min(trial.observation.images, len(probe_set.x))
    x, y = probe_set.x[:count], probe_set.y[:count]
    pictures = {"reconstruction": torch.stack([x, network.decode(network.encode(x))], 1).flatten(0, 1)}
    if trial.objective.diffusion_weight > 0:
        z = sample_latents(
            network,
            probe_set.e[:count],
            sampled_labels(y, trial.labels.drop, network.classes),
            "heun",
            _STEPS,
            1.0,
            trial.objective,
        )
        pictures["samples"] = network.decode(z)
    return {name: to_bytes(value) for name, value in pictures.items()}


def to_bytes(images: Tensor) -> Tensor:
    """Float images [..., H, W] in [-1, 1] -> uint8 on the CPU, rounded; non-finite pixels become a checkerboard."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    chessboard = (rows[:, None] + columns) % 2 * 2.0 - 1
    shown = torch.where(images.isfinite(), images.float(), chessboard)
    return ((shown + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def save_grid(folder: Path, name: str, step: int, images: Tensor) -> str:
    """Save images uint8 [N, C, H, W] as one PNG below a folder; returns its name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{step:09d}.png"
    write_atomic(path, encoded(images))  # which follows no link
    return path.name


def encoded(samples: Tensor) -> bytes:
    """PNG of images [N, C, H, W] uint8 as a grid of ten columns."""
    return png(tile(samples, columns=10))


def png(picture: Tensor) -> bytes:
    """PNG of one image [C, H, W] uint8, grey or RGB."""
    from PIL import Image

    array = picture.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, format="PNG")
    return file.getvalue()


def tile(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """[N, C, H, W] uint8 -> one picture [C, h, w] with white gaps, small images enlarged to about 32 pixels."""
    scale = max(1, 32 // images.shape[-1])
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    picture = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        picture[:, y : y + h, x : x + w] = image
    return picture
