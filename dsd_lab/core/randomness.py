"""Random numbers as a function of (seed, purpose, step): no generator state is ever saved.

A step draws for the whole global batch and slices by sample index. A resumed run therefore draws the same numbers
as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends only on these arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of an epoch's images [images], cached for its next steps; read-only."""
    return torch.randperm(images, generator=generator(seed, "order", epoch))


def batch_indices(seed: int, step: int, batch_size: int, images: int) -> Tensor:
    """Indices [batch_size] of the images of a step: shuffled epochs, concatenated.

    Every image occurs once per epoch. A batch may span the end of an epoch.
    """
    start = step * batch_size
    parts, taken = [], 0
    while taken < batch_size:
        epoch, offset = divmod(start + taken, images)
        part = _order(seed, epoch, images)[offset : offset + batch_size - taken]
        parts.append(part)
        taken += len(part)
    return torch.cat(parts)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch: times t [k B], noise e [k B, T, c], labels y [k B] after label drop.

    k is the number of draws per image (`training.noise_draws`); draw j of image i is row j B + i. Where the spec
    uses them: noise of the decoder's input and of the latents, both [B, T, c] ~ N(0, I), and the mask [B, T] of
    tokens hidden from the online encoder. `labels` [B] are the labels before label drop.
    """

    t: Tensor
    e: Tensor
    y: Tensor
    decoder_e: Tensor | None = None
    latent_e: Tensor | None = None
    mask: Tensor | None = None
    labels: Tensor | None = None

    def of_images(self, chosen: slice | Tensor, batch: int) -> Draws:
        """The draws of some images of the batch.

        Args:
            chosen: which images, a slice or indices.
            batch: B, the number of images in the batch.
        """
        found = {
            name: value.unflatten(0, (-1, batch))[:, chosen].flatten(0, 1)
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **found)
