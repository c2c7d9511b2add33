"""Metrics of features, computed by torch-fidelity, and flags for unreliable results."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Statistics = dict[str, NDArray[np.float64]]
"""`mu` [D] and `sigma` [D, D] of features."""
_SPLITS, _SUBSETS, _NEIGHBOURS = 10, 200, 3
_WHOLE = 5000
"""Maximum number of images for which all distances are kept in memory."""
_RANK = 1e-10
"""Variance relative to the largest above which a direction counts in the rank."""


def statistics(features: Tensor) -> Statistics:
    """Mean [D] and covariance [D, D] of features [N, D], in float64."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found: Statistics = fid_features_to_statistics(features.double())
    return found


def frechet(one: Statistics, other: Statistics) -> float:
    """Frechet distance (Heusel et al., arXiv 1706.08500) between two Gaussians, by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return float(fid_statistics_to_metric(one, other, False)[KEY_METRIC_FID])


def fid(features: Tensor, reference: Tensor) -> float:
    """Frechet distance between features [N, D] and [M, D]."""
    return frechet(statistics(features), statistics(reference))


def kid(features: Tensor, reference: Tensor) -> float:
    """Kernel distance (Binkowski et al., arXiv 1801.01401), mean over 100 subsets of at most 200, by torch-fidelity."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(_SUBSETS, len(features), len(reference))
    found = kid_features_to_metric(features.double(), reference.double(), kid_subset_size=size, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def inception_score(scores: Tensor) -> float:
    """Inception score (Salimans et al., arXiv 1606.03498) of class scores [N, classes], mean over 10 splits, by torch-fidelity.

    It is at most the extractor's number of classes.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return float(isc_features_to_metric(scores, splits=min(_SPLITS, len(scores)))[KEY_METRIC_ISC_MEAN])


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991) with 3 neighbours, by torch-fidelity.

    NaN if either set has fewer than 4 images. Features are those of the extractor for FID, whereas torch-fidelity's
    default for these two metrics is VGG-16.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    if min(len(features), len(reference)) <= _NEIGHBOURS:
        return math.nan, math.nan
    frugal = max(len(features), len(reference)) > _WHOLE
    found = prc_features_to_metric(
        features, reference, prc_neighborhood=_NEIGHBOURS, save_cpu_ram=frugal, prc_batch_size=1000, verbose=False
    )
    return float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])


def rank(sigma: NDArray[np.float64]) -> int:
    """Numerical rank of a covariance [D, D]."""
    spectrum = np.linalg.eigvalsh(sigma)
    return int((spectrum > _RANK * max(spectrum[-1], np.finfo(np.float64).tiny)).sum())


def flags(samples: Statistics, count: int, reference: Statistics, distance: float) -> dict[str, float]:
    """Why a Frechet distance of `count` images is unreliable; empty if it is reliable.

    `few_images`: the number of images, if it is too small for the rank of the reference. `rank_deficient`: the rank of
    the samples, if it is lower than their number and the reference allow. `constant`: 1 if all features are equal.
    `not_finite`: 1 if the distance is not finite.
    """
    if not math.isfinite(distance):
        return {"not_finite": 1.0}
    has, wanted = rank(samples["sigma"]), rank(reference["sigma"])
    if has == 0 or float(np.trace(samples["sigma"])) <= _RANK * float(np.trace(reference["sigma"])):
        return {"constant": 1.0}
    found = {"few_images": float(count)} if count - 1 < wanted else {}
    return found | ({"rank_deficient": float(has)} if has < min(count - 1, wanted) else {})


def nearest_train(images: Tensor, train: Tensor | Iterable[Tensor]) -> float:
    """Median over images [N, C, H, W] of the RMS pixel distance to the nearest training image, in grey levels of 255.

    Training images [M, C, H, W] are one tensor or an iterable of blocks.
    """
    flat = images.flatten(1).float()
    nearest = torch.full((len(flat),), math.inf)
    for block in train.split(100_000) if isinstance(train, Tensor) else train:
        reference = block.flatten(1).float()
        found = torch.cat([torch.cdist(chunk, reference).amin(1) for chunk in flat.split(256)])
        nearest = torch.minimum(nearest, found)
    return float(nearest.median()) / math.sqrt(flat.shape[1])
