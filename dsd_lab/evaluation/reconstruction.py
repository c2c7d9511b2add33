"""Metrics of reconstructions of held-out images, and of classifiers on latents."""

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
"""Maximum pixel value, and SSIM's constant K2."""
_NEIGHBOURS, _MAX_FITTED, _ITERATIONS = 20, 20_000, 500


@torch.no_grad()
def reconstructions(network: Network, data: DataSet, device: torch.device) -> Tensor:
    """Held-out images through encoder and decoder: [N, C, H, W] uint8."""
    parts = []
    for indices in torch.arange(len(data.holdout)).split(_BATCH):
        x, _ = data.holdout.at(indices, device)
        parts.append(to_bytes(network.decode(network.encode(x))))
    return torch.cat(parts)


def psnr(images: Tensor, originals: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over uint8 images [N, C, H, W]; infinite if one is an exact copy."""
    pairs = zip(images.split(_BATCH), originals.split(_BATCH), strict=True)
    errors = torch.cat([(a.double() - b.double()).square().flatten(1).mean(1) for a, b in pairs])
    return float((10 * torch.log10(_PEAK**2 / errors)).mean())


def ssim_window(side: int) -> str:
    """Name of SSIM's window for a side length: `wang11`, or `skimage7` and smaller for images below 11 pixels."""
    width = _ssim_width(side)
    return f"wang{width}" if width == _STANDARD_WINDOW else f"skimage{width}"


def _ssim_width(side: int) -> int:
    return _STANDARD_WINDOW if side >= _STANDARD_WINDOW else min(7, side - 1 + side % 2)


def ssim(images: Tensor, originals: Tensor) -> float:
    """Structural similarity of uint8 images [N, C, H, W], mean over windows within the images, channels and images.

    From 11 pixels on as in Wang et al. 2004: a Gaussian window of 11 pixels with std 1.5. Below, scikit-image's default: a
    uniform window of 7 pixels (or 5 or 3, if that does not fit) with sample covariances. NaN below 3 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    width = _ssim_width(min(originals.shape[2:]))
    if width < 3:
        return math.nan
    settings: dict[str, Any] = {"data_range": _PEAK, "return_full_image": True}
    if width < _STANDARD_WINDOW:
        # Sample covariances are n / (n - 1) times those of torchmetrics. A smaller K2 has the same effect.
        settings |= {"gaussian_kernel": False, "kernel_size": width, "k2": _K2 * math.sqrt(1 - 1 / width**2)}
    total, inside = 0.0, slice(width // 2, -(width // 2))  # without windows that contain padded pixels
    for a, b in zip(images.split(_BATCH), originals.split(_BATCH), strict=True):
        _, everywhere = structural_similarity_index_measure(a.double(), b.double(), **settings)
        total += float(cast(Tensor, everywhere)[..., inside, inside].flatten(1).mean(1).sum())
    return total / len(originals)


@torch.no_grad()
def latents(network: Network, images: Split, indices: Tensor, device: torch.device) -> Tensor:
    """Latents [n, T c] of the images with indices [n], without noise."""
    parts = [network.encode(images.at(chunk, device)[0]).flatten(1).float().cpu() for chunk in indices.split(_BATCH)]
    return torch.cat(parts)


def fitted_on(data: DataSet) -> int:
    """Number of training images for the classifiers of `representation`."""
    return min(len(data.train), _MAX_FITTED)


def representation(
    network: Network, data: DataSet, device: torch.device, measured: tuple[str, ...]
) -> dict[str, float]:
    """Held-out accuracy of simple classifiers on latents, fitted to at most 20,000 training images.

    `knn`: majority of the 20 nearest neighbours; `linear`: logistic regression. Both use standardised latents and
    scikit-learn (settings are ours).
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
