"""Random numbers as a function of (seed, purpose, step), so that no generator's state is ever saved.

A step draws for the whole global batch and slices by sample index; a resumed run therefore sees
the numbers of an uninterrupted one by construction, whatever drew before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on these arguments and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of an epoch, kept for its next steps; nobody writes to it."""
    return torch.randperm(images, generator=generator(seed, "order", epoch))


def batch_indices(seed: int, step: int, batch_size: int, images: int) -> Tensor:
    """Indices [batch_size] of the images of a step: epochs of shuffled order, laid end to end.

    A batch may span the end of an epoch; every image is seen once in each.
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

    k is the number of draws an image (`training.noise_draws`): draw j of image i is row j B + i. Noise
    of the decoder's input and of the latents, both [B, T, c] ~ N(0, I), and the tokens hidden from the
    online encoder [B, T], where the spec uses them. `labels` [B] are those before label drop.
    """

    t: Tensor
    e: Tensor
    y: Tensor
    decoder_e: Tensor | None = None
    latent_e: Tensor | None = None
    hidden: Tensor | None = None
    labels: Tensor | None = None

    def of_images(self, chosen: slice | Tensor, batch: int) -> Draws:
        """The rows of some of the batch's images."""
        found = {
            name: value.unflatten(0, (-1, batch))[:, chosen].flatten(0, 1)
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **found)
