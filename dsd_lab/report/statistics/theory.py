"""Closed forms of the diffusion loss's derivative with respect to the latents' scale.

One direction of the latents, z = a z0 with z0 ~ N(0, s^2), is noised to z_t = t z + (1 - t) e, and the
denoiser is frozen at the posterior mean. With V = t^2 s^2 + (1 - t)^2 its outputs are linear in z_t:

    clean f = (t s^2 / V) z_t          velocity v = ((t s^2 - (1 - t)) / V) z_t

Every loss of `core/diffusion/objectives.py` is then E[w (k z_t - z2 + c e)^2], where k is the coefficient of the
quantity in the loss. Its derivative with respect to a at a = 1 is, for every t,

    2 w s^2 (k t - 1) (k t [z_t live] - [target live])

If output and loss space differ, k includes the conversion with its clamp. The expectation over t is a Gauss-Legendre
rule in logit t, where every time distribution is smooth and small standard deviations are resolved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, logit, ndtri, roots_legendre

from dsd_lab.home.history import Floats
from dsd_lab.specs.objective import LINEAR

_PANELS, _NODES = 64, 8
_TAIL = 1e-15
"""Probability of t on either side outside the quadrature."""

Fields = Mapping[str, Mapping[str, Any]]
"""Fields of a trial, as in its `trial.json`."""


@dataclass(frozen=True)
class _Law:
    """A distribution that is symmetric about its centre."""

    centre: float
    reach: float
    """Distance from the centre to the upper `_TAIL` quantile."""
    density: Callable[[Floats], Floats]
    """Up to a factor."""


def _logistic(time: Mapping[str, Any]) -> _Law:
    return _Law(0.0, -float(logit(_TAIL)), lambda x: expit(x) * expit(-x))


def _normal(time: Mapping[str, Any]) -> _Law:
    mean, std = time["mean"], time["std"]
    return _Law(mean, -std * float(ndtri(_TAIL)), lambda x: np.exp(-(((x - mean) / std) ** 2) / 2))


_LOGIT_TIMES: dict[str, Callable[[Mapping[str, Any]], _Law]] = {"uniform": _logistic, "logit_normal": _normal}
"""Distribution of logit t before the shift."""

_WEIGHTS: dict[str, Callable[[Floats, float], Floats]] = {
    "none": lambda noise, clamp: np.ones_like(noise),
    "velocity": lambda noise, clamp: np.maximum(noise, clamp) ** -2,
}
"""w(t) in clean space, by 1 - t."""


def has_closed_form(fields: Fields) -> bool:
    """Whether there are closed forms for this objective and time distribution, at all steps."""
    objective = fields["objective"]
    return (
        objective["diffusion_weight"] > 0
        and objective.get("path", LINEAR) == LINEAR
        and objective["target"] in ("live", "stop_gradient", "ema")
        and objective["noised"] in ("live", "detached")
        and objective["output"] in ("velocity", "clean")
        and objective["loss_space"] in ("velocity", "clean")
        and objective["weighting"] in _WEIGHTS
        and fields["time"]["distribution"] in _LOGIT_TIMES
        and not fields.get("training", {}).get("phases")
    )


def scale_gradient(fields: Fields, s: Any) -> Floats:
    """Derivative of the unweighted diffusion loss of one direction with respect to its scale.

    Args:
        fields: sections `objective` and `time` are used.
        s: standard deviations of the directions, any shape; 0 gives 0.

    Returns:
        Derivatives in the shape of `s`. Positive: gradient descent shrinks the direction. An EMA target is treated as a
        stop-gradient.

    Raises:
        ValueError: there is no closed form (`has_closed_form`).
    """
    if not has_closed_form(fields):
        raise ValueError("no closed form for this objective or time distribution")
    t, noise, weight = time_rule(fields["time"], fields["objective"]["clamp"])
    square = np.square(np.asarray(s, dtype=float))[..., None]
    return np.asarray((_at_time(fields["objective"], square, t, noise) * weight).sum(-1))


def _at_time(objective: Mapping[str, Any], square: Floats, t: Floats, noise: Floats) -> Floats:
    """The derivative at times t with 1 - t = noise, for variances `square` [..., 1]."""
    total = t**2 * square + noise**2
    clean, velocity = t * square / total, (t * square - noise) / total
    divisor, is_clean = np.maximum(noise, objective["clamp"]), objective["output"] == "clean"
    w: Floats | float = 1.0
    if objective["loss_space"] == "velocity":
        k = (clean - 1) / divisor if is_clean else velocity
    else:
        k = clean if is_clean else 1 + noise * velocity
        w = _WEIGHTS[objective["weighting"]](noise, objective["clamp"])
    through, target = float(objective["noised"] == "live"), float(objective["target"] == "live")
    return 2 * w * square * (k * t - 1) * (k * t * through - target)


def time_rule(time: Mapping[str, Any], clamp: float) -> tuple[Floats, Floats, Floats]:
    """Nodes t and 1 - t, and weights that sum to 1, each [Q], of the expectation over training times.

    Args:
        time: fields of the distribution.
        clamp: lower bound of 1 - t in divisions; the integrand has a kink there, so a panel ends there.
    """
    before = _LOGIT_TIMES[time["distribution"]](time)
    moved = -math.log(time["shift"])  # a shift subtracts its logarithm from logit t
    ends = before.centre + np.linspace(-before.reach, before.reach, _PANELS + 1) + moved
    if clamp < 1 and ends[0] < (kink := math.log((1 - clamp) / clamp)) < ends[-1]:
        ends = np.unique(np.append(ends, kink))
    x, weight = roots_legendre(_NODES)
    half = np.diff(ends)[:, None] / 2
    nodes = (ends[:-1, None] + half * (1 + x)).ravel()
    density = (half * weight).ravel() * before.density(nodes - moved)
    return expit(nodes), np.exp(log_expit(-nodes)), density / density.sum()
