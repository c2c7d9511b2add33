"""Augmentation of training images; each kind draws from its own generator.

`flip` and `crop` change the image that both encoders see and that is reconstructed. `mask` hides tokens from the online
encoder only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.randomness import generator

if TYPE_CHECKING:
    from dsd_lab.specs.auxiliary import Augmentation


def augmented(
    x: Tensor, spec: Augmentation, seed: int, step: int, size: int | None = None, rows: Tensor | None = None
) -> Tensor:
    """Images [n, C, H, W] of a step, flipped and cropped as the spec says.

    Args:
        x: images [n, C, H, W]: the whole batch, or the rows that this process has.
        spec: section `augmentation`.
        seed: seed of the trial.
        step: training step.
        size: number B of images in the whole batch; None: n.
        rows: indices [n] of x in the batch; None: all.
    """
    size = len(x) if size is None else size
    chosen = slice(None) if rows is None else rows
    if spec.flip > 0:
        drawn = torch.rand(size, generator=generator(seed, "flip", step, x.device), device=x.device)
        x = flipped(x, (drawn < spec.flip)[chosen])
    if spec.crop > 0:
        source = generator(seed, "crop", step, x.device)
        shifts = torch.randint(-spec.crop, spec.crop + 1, (size, 2), generator=source, device=x.device)
        x = shifted_crop(x, shifts[chosen])
    return x


def flipped(x: Tensor, which: Tensor) -> Tensor:
    """Images [B, C, H, W], mirrored left to right where the mask `which` [B] is true."""
    return torch.where(which[:, None, None, None], x.flip(3), x)


def shifted_crop(x: Tensor, shifts: Tensor) -> Tensor:
    """Crops of images [B, C, H, W] padded by reflection (without repeating the edge).

    Args:
        x: images.
        shifts: offset of each crop, [B, 2] whole pixels down and right, smaller than the image.
    """
    rows, columns = (_reflected(shifts[:, axis, None], x.shape[2 + axis]) for axis in (0, 1))
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflected(shift: Tensor, size: int) -> Tensor:
    index = (torch.arange(size, device=shift.device) + shift).abs()
    return size - 1 - (size - 1 - index).abs()


def hidden_tokens(
    spec: Augmentation, size: int, tokens: int, seed: int, step: int, device: torch.device
) -> Tensor | None:
    """Mask [B, T] of the tokens hidden from the online encoder at a step; None if the spec hides none.

    Each image hides floor(mask * T + u) tokens with u uniform on [0, 1). The mean fraction is `mask` for any T, and no
    image differs from it by a whole token.
    """
    if spec.mask == 0:
        return None
    source = generator(seed, "mask", step, device)
    counts = (spec.mask * tokens + torch.rand(size, 1, generator=source, device=device)).floor()
    ranks = torch.rand(size, tokens, generator=source, device=device).argsort(1).argsort(1)
    return ranks < counts
