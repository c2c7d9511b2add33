"""Metrics of collapse: variance, rank and capacity of latents z [N, T, c].

The token level is the matrix (N T) x c, the image level N x (T c). Spectra are float64 eigenvalues of the smaller Gram
matrix of the centred data. Every metric is defined on constant and zero latents: a matrix that varies by no more than
float32 rounding has rank 0, variance 0 and capacity 0. If a latent is not finite, spectra and their metrics are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsd_lab.errors import BadInput
from dsd_lab.specs.registry import Part, Parts


def _number(found: Any, *given: Any) -> str | None:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return None if is_number else f"gives a {type(found).__name__}, not a float"


def _check_on_constant(part: Part) -> None:
    """Check that a metric is defined on constant latents, since collapsed latents must be measured.

    Raises:
        BadInput: the metric fails or is not finite.
    """
    for level in (0.0, 1.0):
        constant = torch.full((4, 4, 3), level)
        try:
            found = _value(part, constant, 2, Spectra.of(constant))
        except BadInput:
            raise
        except Exception as error:
            raise part.fault(f"fails on constant latents: {type(error).__name__}: {error}") from None
        if not math.isfinite(found):
            raise part.fault(f"gives {found} on constant latents; a collapsed trial needs a finite value")


LATENT_METRICS = Parts("latent_metric", check=_number, at_once=_check_on_constant)
"""(latents z [N, T, c], tokens per side of the grid) -> float, recorded as `latent/NAME`.

A metric that takes `spectra` is given the `Spectra` of z too. Traits of a plug-in's: `label`, `unit`, `digits`; those of
the package are in `dsd_lab.specs.metrics`.
"""

_ROUNDING = torch.finfo(torch.float32).eps
_ALPHA_FIRST, _ALPHA_LAST = 4, 100
"""First and last rank of the eigenvalues in the fit of alpha-ReQ."""


def token_matrix(z: Tensor) -> Tensor:
    """[N, T, c] -> [(N T), c]."""
    return z.flatten(0, 1)


def image_matrix(z: Tensor) -> Tensor:
    """[N, T, c] -> [N, (T c)]."""
    return z.flatten(1)


def singular_values(matrix: Tensor, centred: bool = True) -> Tensor:
    """Singular values [min(rows, columns)], descending, float64; values within float32 rounding are 0.

    Args:
        matrix: [rows, columns].
        centred: subtract the mean row first.
    """
    matrix = matrix.double()
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((min(matrix.shape),), torch.nan)
    floor = _ROUNDING * matrix.abs().max() * max(matrix.shape) ** 0.5
    if centred:
        matrix = matrix - matrix.mean(0)
    gram = matrix.T @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.T
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    return torch.where(values > floor, values, torch.zeros_like(values))


def covariance_spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues of the covariance of a matrix [rows, columns] (divided by rows), descending, float64."""
    return singular_values(matrix) ** 2 / len(matrix)


def entropy_rank(weights: Tensor) -> float:
    """exp of the entropy of non-negative weights [n] normalised to sum 1; 0 if all are 0.

    Singular values give the effective rank (Roy and Vetterli 2007), covariance eigenvalues the spectral rank.
    """
    total = weights.sum()
    if total == 0:
        return 0.0
    p = weights / total
    return float(torch.special.entr(p).sum().exp())


def effective_rank(matrix: Tensor) -> float:
    """Roy and Vetterli 2007: entropy rank of the centred matrix's singular values; 0 to min(shape)."""
    return entropy_rank(singular_values(matrix))


def spectral_rank(matrix: Tensor) -> float:
    """Entropy rank of the covariance's eigenvalues; at most min(shape)."""
    return entropy_rank(covariance_spectrum(matrix))


def rankme(matrix: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): entropy rank of uncentred singular values; 0 for a zero matrix.

    As in the paper, 1e-7 is added after normalising."""
    values = singular_values(matrix, centred=False)
    if values.sum() == 0:
        return 0.0
    p = values / values.sum() + 1e-7
    return float((-p * p.log()).sum().exp())


def participation_ratio(eigenvalues: Tensor) -> float:
    """(sum l)^2 / sum l^2 of covariance eigenvalues l [n]; 0 if all are 0."""
    squares = eigenvalues.square().sum()
    return float(eigenvalues.sum() ** 2 / squares) if squares != 0 else 0.0


def stable_rank(eigenvalues: Tensor) -> float:
    """sum l / max l of covariance eigenvalues l [n]; 0 if all are 0."""
    return float(eigenvalues.sum() / eigenvalues.max()) if eigenvalues.max() != 0 else 0.0


def alpha_req(eigenvalues: Tensor) -> tuple[float, int]:
    """alpha-ReQ: the exponent of covariance eigenvalues l_i ~ i^-alpha, and the last rank of the fit.

    Agrawal et al. 2022 (arXiv 2202.05808): least squares of log l_i on log i over ranks 4 to 100 with weights 1 / i, as
    in the authors' code. Only positive eigenvalues are used; 0 if fewer than two are in the fit.
    """
    if bool(eigenvalues.isnan().any()):
        return float("nan"), 0
    positive = eigenvalues[eigenvalues > 0][:_ALPHA_LAST].cpu().double()
    ranks = torch.arange(_ALPHA_FIRST, max(len(positive), _ALPHA_FIRST - 1) + 1, dtype=torch.float64)
    if len(ranks) < 2:
        return 0.0, len(positive)
    x, y, weights = ranks.log(), positive[_ALPHA_FIRST - 1 :].log(), 1 / ranks
    x, y = (v - (weights * v).sum() / weights.sum() for v in (x, y))
    return float(-(weights * x * y).sum() / (weights * x.square()).sum()), len(positive)


def patch_ranks(x: Tensor, patch: int) -> dict[str, float]:
    """Effective ranks of the images' patches at token and image level, as a reference for those of latents.

    Args:
        x: images [N, C, H, W].
        patch: pixels per side of a patch.
    """
    z = torch.nn.functional.unfold(x, patch, stride=patch).transpose(1, 2)  # [N, T, C patch^2]
    return {
        "patches/effective_rank/token": effective_rank(token_matrix(z)),
        "patches/effective_rank/image": effective_rank(image_matrix(z)),
    }


def uniformity(matrix: Tensor) -> float:
    """log mean exp(-2 |u_i - u_j|^2) over pairs of unit rows; at most 0 (all equal). Wang and Isola 2020 (2005.10242)."""
    unit = torch.nn.functional.normalize(matrix.double(), dim=1)
    return float(torch.pdist(unit).square().mul(-2).exp().mean().log()) if len(unit) > 1 else 0.0


def capacity_bits(eigenvalues: Tensor) -> float:
    """Capacity, 1/2 sum log2(1 + l_i) over covariance eigenvalues: bits of a Gaussian latent under unit-variance noise."""
    return float(0.5 * torch.log2(1 + eigenvalues).sum())


def viv(eigenvalues: Tensor) -> float:
    """(pi/2) sum sqrt(l) of covariance eigenvalues l: the loss that no velocity prediction of a Gaussian latent goes below.

    The integral over uniform times of I(t) = sum l / ((1 - t)^2 + t^2 l) (VIV, arXiv 2606.03578). Not divided by channels.
    """
    return float(math.pi / 2 * eigenvalues.sqrt().sum())


def viv_at(eigenvalues: Tensor, t: float) -> float:
    """I(t) of `viv`, at a time 0 < t < 1."""
    return float((eigenvalues / ((1 - t) ** 2 + t**2 * eigenvalues)).sum())


@dataclass(frozen=True)
class Spectra:
    """Covariance spectra of latents, descending, which several metrics are made from."""

    token: Tensor
    """[min(N T, c)]"""
    image: Tensor
    """[min(N, T c)]"""

    @classmethod
    def of(cls, z: Tensor) -> Spectra:
        """Of latents z [N, T, c]."""
        return cls(covariance_spectrum(token_matrix(z)), covariance_spectrum(image_matrix(z)))


@LATENT_METRICS.add("variance")
def _variance(z: Tensor, side: int) -> float:
    """Variance over images and tokens, mean over channels."""
    return float(z.double().var(dim=(0, 1), correction=0).mean())


@LATENT_METRICS.add("spatial_variance")
def _spatial_variance(z: Tensor, side: int) -> float:
    """Variance over the tokens of an image, mean over images and channels."""
    return float(z.double().var(dim=1, correction=0).mean())


@LATENT_METRICS.add("total_variation")
def total_variation(z: Tensor, side: int) -> float:
    """Sum of absolute differences between neighbouring tokens of the grid, mean over images (REPA-E, arXiv 2504.10483)."""
    grid = z.double().reshape(len(z), side, side, -1)
    differences = (grid.diff(dim=1).abs().flatten(1).sum(1), grid.diff(dim=2).abs().flatten(1).sum(1))
    return float((differences[0] + differences[1]).mean())


def _of_spectra(name: str, value: Callable[[Tensor], float], levels: tuple[str, ...], what: str) -> None:
    """Register a number of a covariance spectrum at each level."""
    for level in levels:

        def metric(z: Tensor, side: int, spectra: Spectra, level: str = level) -> float:
            return value(getattr(spectra, level))

        metric.__doc__ = f"{what}, of {level}s."
        LATENT_METRICS.add(f"{name}/{level}")(metric)


_BOTH = ("token", "image")
_of_spectra("effective_rank", lambda values: entropy_rank(values.sqrt()), _BOTH, "Entropy rank of singular values")
_of_spectra("spectral_rank", entropy_rank, _BOTH, "Entropy rank of the covariance's eigenvalues")


@LATENT_METRICS.add("rankme/image")
def _rankme(z: Tensor, side: int) -> float:
    """RankMe of whole latents."""
    return rankme(image_matrix(z))


_of_spectra("participation_ratio", participation_ratio, _BOTH, "(sum l)^2 / sum l^2 of the covariance's eigenvalues")
_of_spectra("stable_rank", stable_rank, _BOTH, "sum l / max l of the covariance's eigenvalues")
_of_spectra("alpha_req", lambda values: alpha_req(values)[0], ("image",), "Decay of the eigenvalues, alpha-ReQ")


@LATENT_METRICS.add("alpha_req/image/fit_last")
def _alpha_req_fit(z: Tensor, side: int, spectra: Spectra) -> float:
    """Last rank that alpha-ReQ is fitted on."""
    return float(alpha_req(spectra.image)[1])


@LATENT_METRICS.add("uniformity/image")
def _uniformity(z: Tensor, side: int) -> float:
    """Uniformity of whole latents on the unit sphere."""
    return uniformity(image_matrix(z))


_of_spectra("capacity_bits", capacity_bits, ("token",), "Bits that survive unit-variance noise")
_of_spectra("viv", viv, _BOTH, "Least loss of a velocity prediction, VIV")


def latent_metrics(z: Tensor, side: int, suffix: str = "") -> tuple[dict[str, float], dict[str, list[float]]]:
    """All metrics of latents z [N, T, c] on a grid of side x side tokens, and the covariance spectra.

    Args:
        z: latents, on any device; float32 for those of plug-ins.
        side: tokens per side of the grid; T = side^2.
        suffix: appended to every name: `/pre` for latents before the normaliser, which plug-ins' metrics are not given.

    Raises:
        BadInput: a plug-in's metric gives no float.
    """
    spectra, metrics = Spectra.of(z), {}
    for part in map(LATENT_METRICS.part, LATENT_METRICS):
        if part.plugin is None or not suffix:
            metrics[f"latent/{part.name}{suffix}"] = _value(part, z, side, spectra)
    return metrics, {f"token{suffix}": spectra.token.tolist(), f"image{suffix}": spectra.image.tolist()}


def _value(part: Part, z: Tensor, side: int, spectra: Spectra) -> float:
    value = part.made(z, side, **({"spectra": spectra} if part.takes("spectra") else {}))
    if (wrong := _number(value)) is not None:
        raise part.fault(wrong)
    return float(value)
