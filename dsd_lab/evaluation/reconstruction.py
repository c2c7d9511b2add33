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
_PEAK, _K2 = 255.0, 0.03
"""Largest value of a pixel, and SSIM's constant of contrast."""
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
    """Peak signal-to-noise ratio in dB, mean over uint8 images [N, C, H, W]; infinite where one is a perfect copy."""
    pairs = zip(images.split(_BATCH), originals.split(_BATCH), strict=True)
    errors = torch.cat([(a.double() - b.double()).square().flatten(1).mean(1) for a, b in pairs])
    return float((10 * torch.log10(_PEAK**2 / errors)).mean())


def ssim_window(side: int) -> str:
    """How SSIM is taken of images of a side length: `wang11`, or `skimage7` and smaller where 11 pixels have no room."""
    width = _ssim_width(side)
    return f"wang{width}" if width == _STANDARD_WINDOW else f"skimage{width}"


def _ssim_width(side: int) -> int:
    return _STANDARD_WINDOW if side >= _STANDARD_WINDOW else min(7, side - 1 + side % 2)


def ssim(images: Tensor, originals: Tensor) -> float:
    """Structural similarity of uint8 images [N, C, H, W], mean over windows within the images, channels and images.

    From 11 pixels on as Wang et al. 2004 have it: a Gaussian window of 11 pixels and std 1.5. Below, as
    scikit-image's default: a uniform window of 7 pixels (5 or 3 where that does not fit) with sample
    covariances. NaN below 3 pixels, where no window varies.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    width = _ssim_width(min(originals.shape[2:]))
    if width < 3:
        return math.nan
    settings: dict[str, Any] = {"data_range": _PEAK, "return_full_image": True}
    if width < _STANDARD_WINDOW:
        # Sample covariances are n / (n - 1) times torchmetrics' own: the same as a constant that is so much smaller.
        settings |= {"gaussian_kernel": False, "kernel_size": width, "k2": _K2 * math.sqrt(1 - 1 / width**2)}
    total, inside = 0.0, slice(width // 2, -(width // 2))  # windows over a border are of padded pixels
    for a, b in zip(images.split(_BATCH), originals.split(_BATCH), strict=True):
        _, everywhere = structural_similarity_index_measure(a.double(), b.double(), **settings)
        total += float(cast(Tensor, everywhere)[..., inside, inside].flatten(1).mean(1).sum())
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
