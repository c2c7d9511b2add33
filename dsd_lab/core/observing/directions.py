"""Latents along principal directions: variance within classes, derivatives of losses by scale, and variance of predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsd_lab.core.observing.latent_metrics import token_matrix


def class_viv(z: Tensor, y: Tensor, classes: int) -> float:
    """`viv` of the tokens of each class's images, mean over images: the lowest velocity loss of a denoiser that is given the class.

    Args:
        z: latents [N, T, c].
        y: classes [N], 0 to `classes` - 1.
        classes: number of classes; at least 1.

    Returns:
        In the units of `viv`; variances within float32 rounding count as 0; NaN where a latent is not finite.
    """
    if not bool(torch.isfinite(z).all()):
        return math.nan
    centred = z.double() - z.double().mean((0, 1))
    member = (y[:, None] == torch.arange(max(1, classes), device=y.device)).double()
    count = member.sum(0)
    tokens = (count * z.shape[1]).clamp(min=1)
    mean = member.T @ centred.sum(1) / tokens[:, None]
    moment = torch.einsum("nk,ncd->kcd", member, torch.einsum("ntc,ntd->ncd", centred, centred)) / tokens[:, None, None]
    values = torch.linalg.eigvalsh(moment - mean[:, :, None] * mean[:, None, :])
    rounding = torch.finfo(torch.float32).eps ** 2 * moment.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    of_class = math.pi / 2 * torch.where(values > rounding, values, 0).sqrt().sum(1)
    return float((count * of_class).sum() / len(y))


def scale_gradient(z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Derivative of a loss with respect to the latents' scale along each principal direction.

    With u_k the eigenvectors of the token covariance and z_k = (z - mean) . u_k, the derivative with
    respect to a factor a_k on direction k, at a_k = 1, is the sum over images and tokens of
    (gradient . u_k) z_k. Positive: gradient descent on the loss shrinks the direction.

    Args:
        z: latents [N, T, c].
        gradient: of the loss with respect to them, [N, T, c].

    Returns:
        Standard deviations [c], descending, and derivatives [c], both float64; NaN where an entry is not finite.
    """
    tokens, slopes = token_matrix(z).double(), token_matrix(gradient).double()
    if not bool(torch.isfinite(tokens).all() & torch.isfinite(slopes).all()):
        return tokens.new_full((z.shape[-1],), torch.nan), tokens.new_full((z.shape[-1],), torch.nan)
    centred = tokens - tokens.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred / len(tokens)).eigenvectors.flip(1)
    along = centred @ directions
    return along.square().mean(0).sqrt(), ((slopes @ directions) * along).sum(0)


def along_directions(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of a target and of its prediction along the target's principal directions.

    Args:
        target: [rows, c].
        prediction: of the target, [rows, c].

    Returns:
        Of the target [c], descending, and of the prediction [c], both float64; NaN where an entry is not finite.
    """
    target, prediction = target.double(), prediction.double()
    if not bool(torch.isfinite(target).all() & torch.isfinite(prediction).all()):
        return target.new_full((target.shape[1],), torch.nan), target.new_full((target.shape[1],), torch.nan)
    target, prediction = (part - part.mean(0) for part in (target, prediction))
    directions = torch.linalg.eigh(target.T @ target / len(target)).eigenvectors.flip(1)
    found = [(part @ directions).square().mean(0).sqrt() for part in (target, prediction)]
    return found[0], found[1]
