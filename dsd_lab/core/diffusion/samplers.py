"""Samplers from noise (t = 0) to clean (t = 1): the probability-flow ODE dz/dt = v(z, t), or the SDE with its marginals.

A new sampler is one function with a name. Sampling is batch-invariant: the noise, and an adaptive solver's time and
step size, belong to one image each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion.objectives import output_of
from dsd_lab.core.diffusion.paths import Linear, Path, path_of
from dsd_lab.core.randomness import generator
from dsd_lab.core.shapes import like_second
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Objective

Velocity = Callable[..., Tensor]
"""velocity(z [B, ...], t [B], rows) -> v [B, ...]; z are the images `rows` (indices or a mask; default: all)."""


SAMPLERS = Parts("sampler", check=like_second)
"""(velocity, noise [B, T, c], solver) -> latents [B, T, c].

Traits: `calls`: network calls per step (default 1); `adaptive`: the sampler chooses its number of steps (False)."""


@dataclass(frozen=True)
class Solver:
    """Settings of a sampler."""

    steps: int = 25
    """Number of equal steps; adaptive samplers ignore it."""
    rtol: float = 1e-5
    atol: float = 1e-5
    """Relative and absolute tolerance per step of an adaptive sampler."""
    seed: int = 0
    first: int = 0
    """Seed of an SDE's noise, and index of the batch's first image; together they determine the noise."""
    path: Path = field(default_factory=Linear)
    """The path that the network was trained on."""


@dataclass(frozen=True)
class Interval:
    """Times with guidance: [low, high], or (low, high) where `open`. A low of 0 is always included (as in JiT)."""

    low: float
    high: float
    open: bool = False

    def holds(self, t: Tensor) -> Tensor:
        """Mask [B] of the times t [B] inside the interval."""
        if self.open:
            return (t < self.high) & ((t > self.low) | (self.low == 0))
        return (self.low <= t) & (t <= self.high)


def sampled_labels(y: Tensor, drop: float, classes: int) -> Tensor:
    """Labels [B] to sample with: y [B], or "no class" if training dropped every label (drop = 1)."""
    return torch.full_like(y, classes) if drop == 1 else y


@SAMPLERS.add("euler")
def euler(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Forward Euler; `steps` network calls."""
    for i in range(solver.steps):
        z = z + velocity(z, _time(i / solver.steps, z)) / solver.steps
    return z


@SAMPLERS.add("heun", calls=2)
def heun(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Heun's second-order method. The last step is Euler's: the velocity of a clean prediction is singular at t = 1."""
    steps = solver.steps
    for i in range(steps):
        v = velocity(z, _time(i / steps, z))
        if i < steps - 1:
            v = (v + velocity(z + v / steps, _time((i + 1) / steps, z))) / 2
        z = z + v / steps
    return z


_LAST_SDE_STEP = 0.04
"""Size of the last step in t: SiT's `last_step_size`, also used by REPA."""


@SAMPLERS.add("sde")
def sde(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Euler-Maruyama on dz = [v + (w(t)/2) s] dt + sqrt(w(t)) dW with w(t) = 2 (1 - t); the last step has no noise.

    s = grad log p_t(z_t) = -E[e|z_t] / (1 - t) = (t v - z_t) / (1 - t), since v = E[z - e|z_t] and
    z_t = t z + (1 - t) e. For any w the SDE has the marginals of the ODE (SiT: Ma et al., arXiv 2401.08740,
    equation 6). This w is REPA's (arXiv 2410.06940) and cancels the pole: dz = [v + t v - z_t] dt + sqrt(2 (1 - t)) dW.
    On another path 1 - t is its sigma, and the drift is `Path.drift`.
    As in SiT and REPA, equal steps lead to t = 0.96, and a last step of the drift alone leads from there to t = 1.
    `steps` network calls.
    """
    steps, path = solver.steps, solver.path
    width = (1 - _LAST_SDE_STEP) / max(1, steps - 1)
    sources = [generator(solver.seed, "sde", solver.first + i) for i in range(len(z))]
    for i in range(steps):
        t = i * width
        drift = path.drift(velocity(z, _time(t, z)), z, _time(t, z))
        if i == steps - 1:
            return z + (1 - t) * drift
        noise = torch.stack([torch.randn(z.shape[1:], generator=source) for source in sources]).to(z)
        sigma = float(path.sigma(torch.tensor([t], dtype=torch.float64)))
        z = z + width * drift + (2 * sigma * width) ** 0.5 * noise
    return z


_NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Dormand and Prince (1980), RK5(4)7M. The last stage is the fifth-order step; `_ERROR` is its difference from the
fourth-order one."""
_END, _FIRST_STEP, _SMALLEST_STEP = 1 - 1e-3, 1e-2, 1e-5


@SAMPLERS.add("dopri5", calls=6, adaptive=True)
def dopri5(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Dormand and Prince's adaptive method up to t = 0.999, then one Euler step; each image has its own step size.

    A step is accepted if the RMS over an image of error / (atol + rtol max(|z|, |z'|)) is at most 1. The next step is
    0.9 error^(-1/5) times as large, clamped to [1/5, 5] (Hairer, Norsett and Wanner, Solving Ordinary Differential
    Equations I, II.4) and rounded down to a quarter power of 2: the last bits of a matrix product change with the batch
    size and must not change the step. A step of 1e-5 is always accepted, so that the method terminates.
    """
    t = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    h = torch.full_like(t, _FIRST_STEP)
    slope = velocity(z, t.to(z.dtype))
    while bool((t < _END).any()):
        rows = (t < _END).nonzero()[:, 0]
        here, start, step = z[rows], t[rows], torch.minimum(h[rows], _END - t[rows])
        width = _broadcast(step, here)
        k = [slope[rows]]
        end = here
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            end = here + width * _weighted(weights, k)
            k.append(velocity(end, (start + node * step).to(z.dtype), rows))
        scale = solver.atol + solver.rtol * torch.maximum(here.abs(), end.abs())
        error = (width * _weighted(_ERROR, k) / scale).double().square().flatten(1).mean(1).sqrt()
        accepted = ~(error > 1) | (step <= _SMALLEST_STEP)  # NaN is accepted: a smaller step would not help
        z[rows] = torch.where(_broadcast(accepted, here), end, here)
        slope[rows] = torch.where(_broadcast(accepted, here), k[-1], k[0])
        t[rows] = torch.where(accepted, start + step, start)
        factor = (0.9 * error.clamp_min(1e-10) ** -0.2).nan_to_num(1).clamp(0.2, 5)
        h[rows] = (step * 2 ** (factor.log2() * 4).floor().div(4)).clamp_min(_SMALLEST_STEP)
    return z + (1 - _broadcast(t, z)) * velocity(z, t.to(z.dtype))


def _time(t: float, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, device=z.device)


def _broadcast(numbers: Tensor, z: Tensor) -> Tensor:
    """Numbers [B] -> [B, 1, ...], in the precision of z [B, ...]; booleans stay booleans."""
    numbers = numbers if numbers.dtype == torch.bool else numbers.to(z.dtype)
    return numbers.reshape(-1, *[1] * (z.dim() - 1))


def _weighted(weights: Sequence[float], stages: list[Tensor]) -> Tensor:
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=True):
        total = total + weight * stage
    return total


def guided_velocity(
    network: Network,
    y: Tensor,
    guidance: float,
    objective: Objective,
    interval: Interval | None = None,
) -> Velocity:
    """v = v(no class) + guidance * (v(y) - v(no class)) for labels y [B] (Ho and Salimans, arXiv 2207.12598).

    A guidance of 1 needs one network call instead of two. Times outside an `interval` have no guidance (Kynkaanniemi
    et al., arXiv 2404.07724, in t instead of noise levels). The velocity of a clean prediction, (f - z_t) / (1 - t) on
    the linear path, is without the training clamp: samplers never evaluate t = 1, and the last Euler step must end at f.
    """
    meaning = output_of(objective)

    def velocity(z: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        labels = y if rows is None else y[rows]

        def one(labels: Tensor) -> Tensor:
            return meaning(network.denoise(z, t, labels).float(), z, t, 1e-6)[1]

        v = one(labels)
        inside = None if interval is None else interval.holds(t)
        if guidance == 1 or (inside is not None and not bool(inside.any())):
            return v
        without = one(torch.full_like(labels, network.classes))
        guided = without + guidance * (v - without)
        return guided if inside is None else torch.where(_broadcast(inside, v), guided, v)

    return velocity


@torch.no_grad()
def sample_latents(
    network: Network,
    noise: Tensor,
    y: Tensor,
    sampler: str,
    steps: int,
    guidance: float,
    objective: Objective,
    *,
    interval: Interval | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Latents [B, T, c] for labels y [B] from noise [B, T, c].

    Args:
        network: only `denoise` and `classes` are used.
        noise: standard normal.
        y: labels.
        sampler: a key of `SAMPLERS`.
        steps: number of equal steps; `dopri5` ignores it.
        guidance: classifier-free guidance scale; 1 is no guidance.
        objective: its `output` says what the network predicts, its `path` how data and noise are mixed.
        interval: times with guidance; None is all times.
        rtol: relative tolerance per step of `dopri5`.
        atol: absolute tolerance per step of `dopri5`.
        seed: seed of the noise of `sde`, which is drawn image by image.
        first: index of this batch's first image among the images drawn with this seed.
    """
    velocity = guided_velocity(network, y, guidance, objective, interval)
    return SAMPLERS[sampler](velocity, noise.clone(), Solver(steps, rtol, atol, seed, first, path_of(objective)))
