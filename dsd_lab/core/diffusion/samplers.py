"""Samplers from noise (t = 0) to clean (t = 1): the probability-flow equation dz/dt = v(z, t), or the SDE of its marginals.

Each takes a velocity function; a new one is one function with a name. What happens to an image never depends on the images that are drawn beside it: noise comes from
a generator of its own, and so do the time and the step of an adaptive solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion.objectives import OUTPUTS
from dsd_lab.core.randomness import generator
from dsd_lab.core.shapes import like_second
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Objective

Velocity = Callable[..., Tensor]
"""velocity(z [B, ...], t [B], rows): v of images `rows` (indices or a mask over the batch; all by default)."""


SAMPLERS = Parts("sampler", check=like_second)
"""(velocity, noise [B, T, c], solver) -> latents [B, T, c]. Traits: `calls` of the network per step (1), `adaptive` steps, whose number is the sampler's own (False)."""


@dataclass(frozen=True)
class Solver:
    """What a sampler may need beside the velocity."""

    steps: int = 25
    """Equal steps of a sampler that has them."""
    rtol: float = 1e-5
    atol: float = 1e-5
    """Relative and absolute error of a step of an adaptive sampler."""
    seed: int = 0
    first: int = 0
    """Seed of an SDE's noise, and the number of the batch's first image, which it also depends on."""


@dataclass(frozen=True)
class Interval:
    """Times [lo, hi] that are guided. Where the ends are open, only an end at 0 belongs to it (as in JiT's sampler)."""

    low: float
    high: float
    open: bool = False

    def holds(self, t: Tensor) -> Tensor:
        """Whether times [B] lie in it."""
        if self.open:
            return (t < self.high) & ((t > self.low) | (self.low == 0))
        return (self.low <= t) & (t <= self.high)


def sampled_labels(y: Tensor, drop: float, classes: int) -> Tensor:
    """Labels y [B] that samples are drawn for: "no class" where training dropped every label, whose embeddings are untrained then."""
    return torch.full_like(y, classes) if drop == 1 else y


@SAMPLERS.add("euler")
def euler(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Forward Euler; `steps` network calls."""
    for i in range(solver.steps):
        z = z + velocity(z, _time(i / solver.steps, z)) / solver.steps
    return z


@SAMPLERS.add("heun", calls=2)
def heun(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Heun's second-order method; the last step is Euler's, since a clean network's velocity is singular at t = 1."""
    steps = solver.steps
    for i in range(steps):
        v = velocity(z, _time(i / steps, z))
        if i < steps - 1:
            v = (v + velocity(z + v / steps, _time((i + 1) / steps, z))) / 2
        z = z + v / steps
    return z


_LAST_SDE_STEP = 0.04
"""In t; SiT's `last_step_size` and REPA's last time."""


@SAMPLERS.add("sde")
def sde(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Euler-Maruyama on dz = [v + (w(t)/2) s] dt + sqrt(w(t)) dW with w(t) = 2 (1 - t); the last step has no noise.

    s = grad log p_t(z_t) = -E[e|z_t] / (1 - t) = (t v - z_t) / (1 - t), since v = E[z - e|z_t] and
    z_t = t z + (1 - t) e. For any w the SDE has the marginals of the ODE (SiT: Ma et al., arXiv
    2401.08740, equation 6); this w, that of REPA (arXiv 2410.06940), cancels the pole:
    dz = [v + t v - z_t] dt + sqrt(2 (1 - t)) dW. As in their samplers, equal steps lead to t = 0.96, and
    the last one is the drift's alone, from there to t = 1. `steps` network calls.
    """
    steps = solver.steps
    width = (1 - _LAST_SDE_STEP) / max(1, steps - 1)
    sources = [generator(solver.seed, "sde", solver.first + i) for i in range(len(z))]
    for i in range(steps):
        t = i * width
        v = velocity(z, _time(t, z))
        if i == steps - 1:
            return z + (1 - t) * (v + t * v - z)
        noise = torch.stack([torch.randn(z.shape[1:], generator=source) for source in sources]).to(z)
        z = z + width * (v + t * v - z) + (2 * (1 - t) * width) ** 0.5 * noise
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
"""Dormand and Prince (1980), RK5(4)7M: the last stage is the step, `_ERROR` its difference from the fourth-order one."""
_END, _FIRST_STEP, _SMALLEST_STEP = 1 - 1e-3, 1e-2, 1e-5


@SAMPLERS.add("dopri5", calls=6, adaptive=True)
def dopri5(velocity: Velocity, z: Tensor, solver: Solver) -> Tensor:
    """Dormand and Prince's adaptive method up to t = 0.999, then one Euler step; time and step size are each image's own.

    A step stands where the RMS over an image of error / (atol + rtol max(|z|, |z'|)) is at most 1. The
    next is 0.9 error^(-1/5) of it, between a fifth and five times (Hairer, Norsett and Wanner, Solving
    Ordinary Differential Equations I, II.4), rounded down to quarter powers of 2 so that the last bits of
    a product, which change with the batch size, do not choose another step. A step of 1e-5 always
    stands, so that it ends.
    """
    t = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    h = torch.full_like(t, _FIRST_STEP)
    slope = velocity(z, t.to(z.dtype))
    while bool((t < _END).any()):
        rows = (t < _END).nonzero()[:, 0]
        here, start, step = z[rows], t[rows], torch.minimum(h[rows], _END - t[rows])
        width = _wide(step, here)
        k = [slope[rows]]
        end = here
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            end = here + width * _weighted(weights, k)
            k.append(velocity(end, (start + node * step).to(z.dtype), rows))
        scale = solver.atol + solver.rtol * torch.maximum(here.abs(), end.abs())
        error = (width * _weighted(_ERROR, k) / scale).double().square().flatten(1).mean(1).sqrt()
        stands = ~(error > 1) | (step <= _SMALLEST_STEP)  # a NaN stands: no smaller step would cure it
        z[rows] = torch.where(_wide(stands, here), end, here)
        slope[rows] = torch.where(_wide(stands, here), k[-1], k[0])
        t[rows] = torch.where(stands, start + step, start)
        factor = (0.9 * error.clamp_min(1e-10) ** -0.2).nan_to_num(1).clamp(0.2, 5)
        h[rows] = (step * 2 ** (factor.log2() * 4).floor().div(4)).clamp_min(_SMALLEST_STEP)
    return z + (1 - _wide(t, z)) * velocity(z, t.to(z.dtype))


def _time(t: float, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, device=z.device)


def _wide(numbers: Tensor, z: Tensor) -> Tensor:
    """Numbers of images [B] in the shape and precision of z [B, ...]; booleans stay booleans."""
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
    """v = v(no class) + guidance * (v(y) - v(no class)) (Ho and Salimans, arXiv 2207.12598); 1 costs one pass.

    Times outside an `interval` are not guided (Kynkaanniemi et al., arXiv 2404.07724, in t instead of
    noise levels). A clean network's velocity is (f - z_t) / (1 - t)
    exactly: samplers never ask for t = 1, so the training clamp does not apply and the last Euler
    step lands on f.
    """

    def velocity(z: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        labels = y if rows is None else y[rows]

        def one(labels: Tensor) -> Tensor:
            return OUTPUTS.bound(objective.output, objective)(network.denoise(z, t, labels).float(), z, t, 1e-6)[1]

        v = one(labels)
        inside = None if interval is None else interval.holds(t)
        if guidance == 1 or (inside is not None and not bool(inside.any())):
            return v
        without = one(torch.full_like(labels, network.classes))
        guided = without + guidance * (v - without)
        return guided if inside is None else torch.where(_wide(inside, v), guided, v)

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
        network: `denoise` and `classes` are used.
        noise: standard normal.
        y: labels.
        sampler: a row of `SAMPLERS`.
        steps: equal steps, of samplers that have them.
        guidance: scale; 1 is none.
        objective: says what the network's output is.
        interval: of t, outside of which nothing is guided; None guides everywhere.
        rtol: relative error of a step of `dopri5`.
        atol: absolute error of it.
        seed: of the noise of `sde`, which is drawn image by image.
        first: number of the first image of this batch among those drawn with this seed.
    """
    velocity = guided_velocity(network, y, guidance, objective, interval)
    return SAMPLERS[sampler](velocity, noise.clone(), Solver(steps, rtol, atol, seed, first))
