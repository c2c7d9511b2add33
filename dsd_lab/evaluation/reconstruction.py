"""How well held-out images come back from their latents, and what the latents know of their classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dsd_lab.core.observing.pictures import to_bytes
from dsd_lab.core.randomness import generator

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet, Split
    from dsd_lab.core.model.network import Network

_BATCH, _STANDARD_WINDOW = 512, 11
_NEIGHBOURS, _MOST_FITTED, _ITERATIONS = 20, 20_000, 500


@torch.no_grad()
def reconstructions(network: Network, data: DataSet, device: torch.device) -> Tensor:
    """Held-out images through encoder and decoder: [N, C, H, W] uint8."""
    parts = []
    for indices in torch.arange(len(data.holdout)).split(_BATCH):
        x, _ = data.holdout.at(indices, device)
        parts.append(to_bytes(network.decode(network.encode(x))))
    return torch.cat(parts)


def psnr(images: Tensor, originals: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of uint8 images; infinite for copies."""
    pairs = zip(images.split(_BATCH), originals.split(_BATCH), strict=True)
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) / originals.numel()
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


def ssim_window(side: int) -> str:
    """The name of SSIM's window: empty for the standard one, `uniform7-` and smaller where an image has no room for it."""
    return "" if side >= _STANDARD_WINDOW else f"uniform{min(7, side - 1 + side % 2)}-"


def ssim(images: Tensor, originals: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over uint8 images, by torchmetrics.

    An 11-pixel Gaussian window, or a uniform one that fits where images are smaller.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    name = ssim_window(min(originals.shape[2:]))
    small: dict[str, Any] = {"gaussian_kernel": False, "kernel_size": int(name[7:-1])} if name else {}
    total = 0.0
    for a, b in zip(images.split(_BATCH), originals.split(_BATCH), strict=True):
        found = structural_similarity_index_measure(a.float(), b.float(), data_range=255.0, **small)
        total += float(cast(Tensor, found)) * len(a)
    return total / len(originals)


@torch.no_grad()
def latents(network: Network, images: Split, indices: Tensor, device: torch.device) -> Tensor:
    """Latents [n, T c] of images, as the decoder gets them without noise."""
    parts = [network.encode(images.at(chunk, device)[0]).flatten(1).float().cpu() for chunk in indices.split(_BATCH)]
    return torch.cat(parts)


def fitted_on(data: DataSet) -> int:
    """Training images that the classifiers of `representation` are fitted on."""
    return min(len(data.train), _MOST_FITTED)


def representation(
    network: Network, data: DataSet, device: torch.device, measured: tuple[str, ...]
) -> dict[str, float]:
    """Accuracy on held-out images of simple classifiers of latents, fitted on training images (at most 20,000).

    `knn`: majority of the 20 nearest; `linear`: logistic regression. Both on latents of zero mean
    and unit variance in each number, by scikit-learn (settings are ours).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = torch.randperm(len(data.train), generator=generator(0, "probe training"))[: fitted_on(data)]
    x, y = latents(network, data.train, chosen, device).numpy(), data.train.labels[chosen].numpy()
    tested = latents(network, data.holdout, torch.arange(len(data.holdout)), device).numpy()
    classifiers = {
        "knn": KNeighborsClassifier(min(_NEIGHBOURS, len(x))),
        "linear": LogisticRegression(max_iter=_ITERATIONS),
    }
    found = {}
    for name in (m for m in classifiers if m in measured):
        fitted = make_pipeline(StandardScaler(), classifiers[name]).fit(x, y)
        found[name] = float(fitted.score(tested, data.holdout.labels.numpy()))
    return found
