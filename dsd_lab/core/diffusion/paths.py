"""The path from noise to data, what a network's output means on it, and the distributions of its times.

z_t = alpha(t) z + sigma(t) e with e ~ N(0, I), t = 0 noise and t = 1 clean; velocity v = dz_t/dt. The package's path
is linear (rectified flow: Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747). A plug-in's gives the two
functions and their slopes; everything else follows from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.shapes import count_second, like_second
from dsd_lab.specs.registry import Part, Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Objective, Time


class Path(ABC):
    """An interpolation path. A subclass gives `alpha`, `sigma` and their slopes at times t [B], each [B].

    It begins at pure noise (alpha 0, sigma 1) and ends at data (alpha 1, sigma 0), and alpha / sigma grows. Methods
    take latents [B, ...] and times [B].
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise."""

    @abstractmethod
    def alpha_slope(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_slope(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    def _determinant(self, t: Tensor) -> Tensor:
        return self.alpha_slope(t) * self.sigma(t) - self.sigma_slope(t) * self.alpha(t)

    def noised(self, z: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha z + sigma e."""
        return _like(self.alpha(t), z) * z + _like(self.sigma(t), z) * e

    def velocity(self, z: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """dz_t/dt of data z and noise e: alpha' z + sigma' e."""
        return _like(self.alpha_slope(t), z) * z + _like(self.sigma_slope(t), z) * e

    def to_clean(self, v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The data of a velocity: f = (sigma v - sigma' z_t) / D with D = alpha' sigma - sigma' alpha."""
        found = _like(self.sigma(t), v) * v - _like(self.sigma_slope(t), v) * z_t
        return found / _like(self._determinant(t), v)

    def to_velocity(self, f: Tensor, z_t: Tensor, t: Tensor, clamp: float) -> Tensor:
        """The velocity of data: v = (D f + sigma' z_t) / max(sigma, clamp)."""
        found = _like(self._determinant(t), f) * f + _like(self.sigma_slope(t), f) * z_t
        return found / _like(self.sigma(t), f).clamp_min(clamp)

    def velocity_weight(self, t: Tensor, clamp: float) -> Tensor:
        """What |f - z|^2 is multiplied by in velocity space: (D / max(sigma, clamp))^2, [B]."""
        return (self._determinant(t) / self.sigma(t).clamp_min(clamp)).square()

    def drift(self, v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """v - E[e | z_t], of the SDE dz = drift dt + sqrt(2 sigma) dW, whose marginals are those of the path.

        The noise of a velocity is (alpha' z_t - alpha v) / D, the score -E[e | z_t] / sigma, and for any w
        dz = [v + (w/2) score] dt + sqrt(w) dW has the marginals of dz = v dt (Ma et al., arXiv 2401.08740, eq. 6).
        """
        noise = _like(self.alpha_slope(t), v) * z_t - _like(self.alpha(t), v) * v
        return v - noise / _like(self._determinant(t), v)


_CHECKED_AT, _STEP, _TOLERANCE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), 1e-4, 1e-3
"""Times at which a plug-in's path is checked, the step of the difference quotient, and what is allowed of both."""


def _check_path(part: Part) -> None:
    """Refuse a path whose ends, slopes or shapes are wrong; one with options is checked at their defaults.

    Raises:
        BadInput: it is not a path; the message has the file and line of its definition.
    """
    try:
        path = part.made() if part.options is None else part.made(options=part.options())
    except Exception as error:
        raise part.fault(f"cannot be built: {type(error).__name__}: {error}") from None
    if (wrong := _is_path(path)) is not None:
        raise part.fault(wrong)
    t = torch.tensor(_CHECKED_AT, dtype=torch.float64)
    found = {}
    for name in ("alpha", "sigma", "alpha_slope", "sigma_slope"):
        try:
            found[name] = getattr(path, name)(t)
        except Exception as error:
            raise part.fault(f"{name} fails: {type(error).__name__}: {error}") from None
        if (wrong := like_second(found[name], None, t)) is not None:
            raise part.fault(f"{name} {wrong}")
    for name, ends in (("alpha", (0.0, 1.0)), ("sigma", (1.0, 0.0))):
        for time, wanted in zip((0, -1), ends, strict=True):
            if not abs(float(found[name][time]) - wanted) <= _TOLERANCE:
                at = f"{name}({_CHECKED_AT[time]:g}) is {float(found[name][time]):g}, not {wanted:g}"
                raise part.fault(f"{at}; t = 0 is noise and t = 1 is clean")
        inside = t[1:-1]
        quotient = (getattr(path, name)(inside + _STEP) - getattr(path, name)(inside - _STEP)) / (2 * _STEP)
        off = (found[f"{name}_slope"][1:-1] - quotient).abs() > _TOLERANCE * (1 + quotient.abs())
        if bool(off.any()) or not bool(quotient.isfinite().all()):
            worst = int(off.double().argmax())
            slope = float(found[f"{name}_slope"][1 + worst])
            raise part.fault(f"{name}_slope({inside[worst]:g}) is {slope:g}, but {name} rises by {quotient[worst]:g}")
    if bool((path._determinant(t[1:-1]) <= 0).any()):
        raise part.fault("alpha / sigma does not grow with t")


def _is_path(found: Any, *given: Any) -> str | None:
    return None if isinstance(found, Path) else f"gives a {type(found).__name__}, not a Path"


PATHS = Parts("path", check=_is_path, at_once=_check_path)
"""Classes of `Path`, built without arguments."""


@PATHS.add("linear")
class Linear(Path):
    """z_t = t z + (1 - t) e, v = z - e."""

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_slope(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    # The general formulas with fewer products: D is 1.

    def noised(self, z: Tensor, e: Tensor, t: Tensor) -> Tensor:
        t = _like(t, z)
        return t * z + (1 - t) * e

    def velocity(self, z: Tensor, e: Tensor, t: Tensor) -> Tensor:
        return z - e

    def to_clean(self, v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t + (1 - _like(t, z_t)) * v

    def to_velocity(self, f: Tensor, z_t: Tensor, t: Tensor, clamp: float) -> Tensor:
        return (f - z_t) / (1 - _like(t, z_t)).clamp_min(clamp)

    def velocity_weight(self, t: Tensor, clamp: float) -> Tensor:
        return (1 - t).clamp_min(clamp) ** -2

    def drift(self, v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        return v + _like(t, v) * v - z_t


def path_of(objective: Objective) -> Path:
    """The path that a spec names."""
    found: Path = PATHS.bound(objective.path, objective)()
    return found


def _like(t: Tensor, z: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (z.dim() - 1))


TIME_DISTRIBUTIONS = Parts("time_distribution", check=count_second)
"""(section `time`, count, generator) -> times [count] in [0, 1], before the shift."""


@TIME_DISTRIBUTIONS.add("uniform")
def _uniform(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1]."""
    return torch.rand(count, generator=generator, device=generator.device)


@TIME_DISTRIBUTIONS.add("logit_normal")
def _logit_normal(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """The logistic function of a normal variable (`mean`, `std`)."""
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.sigmoid(spec.mean + spec.std * normal)


def shifted(t: Tensor, shift: float) -> Tensor:
    """t / (t + shift (1 - t)) for times t [N]: the noise level s = 1 - t becomes shift s / (1 + (shift - 1) s).

    Equation 23 of Esser et al. (SD3, arXiv 2403.03206), whose t is our s and whose sqrt(m / n) is `shift`. logit t
    decreases by ln shift. A shift of 1 returns t bitwise.
    """
    return t if shift == 1 else t / (t + shift * (1 - t))


def draw_times(spec: Time, count: int, generator: torch.Generator) -> Tensor:
    """Training times [count] in [0, 1] from the spec's distribution, shifted."""
    return shifted(TIME_DISTRIBUTIONS.bound(spec.distribution, spec)(spec, count, generator), spec.shift)
