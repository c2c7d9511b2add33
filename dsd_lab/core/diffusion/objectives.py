"""The objectives: reconstruction plus diffusion, in every combination that a spec can name.

The diffusion loss of an image with latent z, noise e and time t (on the linear path z_t = t z + (1 - t) e):

    velocity space   | v - (z2 - e) |^2                  v: velocity prediction
    clean space      w(t) | f - z2 |^2                   f: clean prediction, w = 1 or 1 / max(1-t, c)^2

z2 is the target: the latent with gradient (live), without (stop-gradient), or the EMA encoder's latent. Naive joint
training has a live target in velocity space. Decoupling (arXiv 2511.14716, root cause 1) is the stop-gradient; loss
transformation (root cause 2) is the clean space; DSD is both, with an EMA target encoder. The derivatives of these
losses with respect to the latents' scale have closed forms, which the tests check.

The weighted clean space is the loss that JiT and UNITE (arXiv 2603.22283) write in velocity space,
|(f - z_t) / max(1-t, c) - (z2 - z_t) / max(1-t, c)|^2. UNITE sums the losses of k draws of noise and time per image;
here they are averaged. UNITE's L1 is on pixels in [0, 1] and half of ours. Its objective therefore has
`diffusion_weight` k and `reconstruction_weight` 0.5 here.

Squares are means over tokens and channels; losses are means over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.diffusion.auxiliary import Seen, Tokens
from dsd_lab.core.diffusion.balance import BALANCES, encoder_gradient, with_gradient
from dsd_lab.core.diffusion.paths import Path, path_of
from dsd_lab.core.diffusion.regularisers import regularisers
from dsd_lab.core.model.normalisers import gaussian_entropy
from dsd_lab.core.randomness import Draws
from dsd_lab.core.shapes import like_first, pair_like_first, scalar
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.core.diffusion.auxiliary import Auxiliaries
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Objective, Trial


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: `total` (weighted sum), `terms` (unweighted, by name) and the latents z [B, T, c].

    `multipliers` has weight times factor of each balanced term.
    """

    total: Tensor
    terms: dict[str, Tensor]
    z: Tensor
    multipliers: dict[str, Tensor] = field(default_factory=dict)


HiddenStates = list[Tensor] | None
"""List to which a forward pass appends the output [B, T, width] of each block."""

# -- The target z2 -------------------------------------------------------------------------------

TARGETS = Parts("target", check=like_first)
"""(z [B, T, c], x [B, C, H, W], EMA encoder or None, its noise [B, T, c], its blocks' outputs) -> z2 [B, T, c].

Traits: `needs_ema`: the EMA encoder is given (else None); `live`: gradients reach the encoder through z2.
"""


@TARGETS.add("live")
def _live(
    z: Tensor,
    x: Tensor,
    target_encoder: Network | None,
    noise: Tensor | None = None,
    hidden_states: HiddenStates = None,
) -> Tensor:
    """The latent with gradient: joint training."""
    return z


@TARGETS.add("stop_gradient")
def _stop_gradient(
    z: Tensor,
    x: Tensor,
    target_encoder: Network | None,
    noise: Tensor | None = None,
    hidden_states: HiddenStates = None,
) -> Tensor:
    """The latent without gradient."""
    return z.detach()


@TARGETS.add("ema")
def _ema(
    z: Tensor,
    x: Tensor,
    target_encoder: Network | None,
    noise: Tensor | None = None,
    hidden_states: HiddenStates = None,
) -> Tensor:
    """The EMA encoder's latent. It has the noise of z, so an EMA equal to the encoder gives a stop-gradient."""
    assert target_encoder is not None
    with torch.no_grad():
        return target_encoder.encode(x, noise, hidden_states)


# -- The latent that is noised -------------------------------------------------------------------

NOISED: dict[str, Callable[[Tensor], Tensor]] = {"live": lambda z: z, "detached": lambda z: z.detach()}

# -- What the network's output means: (f, v) ------------------------------------------------------

OUTPUTS = Parts("output", check=pair_like_first)
"""(output [B, T, c], z_t [B, T, c], t [B], lower bound of sigma, path) -> predictions f (clean) and v (velocity) [B, T, c]."""


@OUTPUTS.add("velocity")
def _from_velocity(out: Tensor, z_t: Tensor, t: Tensor, clamp: float, path: Path) -> tuple[Tensor, Tensor]:
    """The network predicts the velocity v; on the linear path z - e."""
    return path.to_clean(out, z_t, t), out


@OUTPUTS.add("clean")
def _from_clean(out: Tensor, z_t: Tensor, t: Tensor, clamp: float, path: Path) -> tuple[Tensor, Tensor]:
    """The network predicts the clean latent f."""
    return out, path.to_velocity(out, z_t, t, clamp)


def output_of(spec: Objective) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """(output, z_t, t, smallest sigma) -> (f, v), as the spec's `output` and `path` say."""
    found: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = _on_path(OUTPUTS, spec.output, spec)
    return found


def _on_path(table: Parts, name: str, spec: Objective) -> Any:
    """A part, with the path as its keyword `path` where it takes one; of others the spec has refused what is not linear."""
    made = table.bound(name, spec)
    return partial(made, path=path_of(spec)) if table.part(name).takes("path") else made


# -- The space of the loss, and its weight ----------------------------------------------------------

WEIGHTINGS = Parts("weighting", check=like_first)
"""(t [B], lower bound of sigma, path) -> w(t) [B], for clean space."""
LOSS_SPACES = Parts("loss_space", check=scalar)
"""(f, v, z2, e, each [B, T, c], t [B], section `objective`, path) -> loss, a scalar."""
RECONSTRUCTIONS = Parts("reconstruction", check=scalar)
"""(decoded, original, each [B, C, H, W] in [-1, 1]) -> loss, a scalar."""


@WEIGHTINGS.add("none")
def _unweighted(t: Tensor, clamp: float) -> Tensor:
    """w(t) = 1."""
    return torch.ones_like(t)


@WEIGHTINGS.add("velocity")
def _as_velocity(t: Tensor, clamp: float, path: Path) -> Tensor:
    """1 / max(1 - t, clamp)^2 on the linear path: gives a clean-space loss its weight in velocity space."""
    return path.velocity_weight(t, clamp)


@LOSS_SPACES.add("velocity")
def _velocity_space(f: Tensor, v: Tensor, z2: Tensor, e: Tensor, t: Tensor, spec: Objective, path: Path) -> Tensor:
    """Mean of |v - (z2 - e)|^2, on another path of |v - dz_t/dt|^2."""
    return (v - path.velocity(z2, e, t)).square().mean()


@LOSS_SPACES.add("clean")
def _clean_space(f: Tensor, v: Tensor, z2: Tensor, e: Tensor, t: Tensor, spec: Objective) -> Tensor:
    """Mean of w(t) |f - z2|^2."""
    w = _on_path(WEIGHTINGS, spec.weighting, spec)(t, spec.clamp)
    return (w * (f - z2).square().flatten(1).mean(1)).mean()


@RECONSTRUCTIONS.add("l1")
def _l1(image: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of pixels."""
    return torch.nn.functional.l1_loss(image, x)


@RECONSTRUCTIONS.add("l2")
def _l2(image: Tensor, x: Tensor) -> Tensor:
    """Mean squared error of pixels."""
    return torch.nn.functional.mse_loss(image, x)


# -- The objective -------------------------------------------------------------------------------


def diffusion_loss(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, z2: Tensor, draws: Draws, spec: Objective
) -> Tensor:
    """Diffusion loss, a scalar.

    Args:
        denoise: (z_t [B, T, c], t [B], y [B]) -> network output [B, T, c], which means what `spec.output` says.
        z: latents to be noised, [B, T, c].
        z2: target [B, T, c], with or without gradient.
        draws: times, noise and labels.
        spec: section `objective`.
    """
    return _diffusion_loss(*predictions(denoise, z, draws, spec), z2, draws, spec)


def predictions(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, draws: Draws, spec: Objective
) -> tuple[Tensor, Tensor]:
    """Clean and velocity predictions f, v [B, T, c] from noised latents; arguments as in `diffusion_loss`."""
    z_t = path_of(spec).noised(NOISED[spec.noised](z), draws.e, draws.t)
    out = denoise(z_t, draws.t, draws.y).float()
    return output_of(spec)(out, z_t, draws.t, spec.clamp)


def _diffusion_loss(f: Tensor, v: Tensor, z2: Tensor, draws: Draws, spec: Objective) -> Tensor:
    found: Tensor = _on_path(LOSS_SPACES, spec.loss_space, spec)(f, v, z2, draws.e, draws.t, spec)
    return found


def losses(
    network: Network,
    target_encoder: Network | None,
    x: Tensor,
    draws: Draws,
    trial: Trial,
    auxiliaries: Auxiliaries | None = None,
    step: int = 0,
) -> Losses:
    """All losses of a batch of images x [B, C, H, W] in [-1, 1], after `step` optimiser steps.

    total = reconstruction_weight * reconstruction + diffusion_weight * diffusion
            + the normaliser's weighted penalties - entropy_weight * entropy + the weighted regularisers
            + anchor_weight * anchor + the weighted auxiliary losses + perceptual_weight * perceptual

    Diffusion, anchor, auxiliary and perceptual losses are also multiplied by the factors of `balance`. `terms` has no
    terms with weight zero; without `auxiliaries` it has no auxiliary and perceptual losses.
    """
    spec = trial.objective
    tokens = Tokens() if auxiliaries is None else auxiliaries.tokens()
    seen = None if auxiliaries is None else auxiliaries.perceptual
    perceptual = None if spec.perceptual_weight == 0 else seen
    raw = network.encode_raw(x, draws.mask, tokens.encode)
    reads_settled = auxiliaries is not None and auxiliaries.reads_settled
    # Before `normalise`, which updates the running statistics.
    settled = network.normaliser.settled(raw.float(), draws.latent_e).float() if reads_settled else None
    z = network.normalise(raw, draws.latent_e)
    weighted: dict[str, tuple[float, Tensor]] = {}
    others: dict[str, tuple[float, Tensor]] = {}
    if spec.reconstruction_weight > 0 or perceptual is not None:
        decoded = raw.float() if trial.latent.decoded == "raw" else z
        decoder_in = decoded if draws.decoder_e is None else decoded + trial.latent.decoder_noise * draws.decoder_e
        image = network.decode_input(decoder_in).float()
        if spec.reconstruction_weight > 0:
            weighted["reconstruction"] = (
                spec.reconstruction_weight,
                RECONSTRUCTIONS.bound(spec.reconstruction, spec)(image, x),
            )
        if perceptual is not None:
            others["perceptual"] = spec.perceptual_weight, perceptual(image, x)
    if spec.diffusion_weight > 0:
        shared = with_gradient(z, encoder_gradient(spec, step))
        z2 = TARGETS.bound(spec.target, spec)(shared, x, target_encoder, draws.latent_e, tokens.target).float()
        denoise, again = partial(network.denoise, hidden_states=tokens.denoise), len(draws.t) // len(x)
        f, v = predictions(denoise, shared.repeat(again, 1, 1), draws, spec)
        weighted["diffusion"] = spec.diffusion_weight, _diffusion_loss(f, v, z2.repeat(again, 1, 1), draws, spec)
        if spec.anchor_weight > 0 or (spec.anchor_perceptual_weight > 0 and seen is not None):
            predicted, images = network.decode(f).float(), x.repeat(again, 1, 1, 1)
            if spec.anchor_weight > 0:
                anchor = RECONSTRUCTIONS.bound(spec.reconstruction, spec)(predicted, images)
                others["anchor"] = spec.anchor_weight, anchor
            if spec.anchor_perceptual_weight > 0 and seen is not None:
                others["anchor_perceptual"] = spec.anchor_perceptual_weight, seen(predicted, images)
    if auxiliaries is not None:
        others |= auxiliaries.terms(Seen(network, x, z, draws, path_of(spec), tokens, settled), target_encoder)
    balanced = {name: term for name, (_, term) in (weighted | others).items() if name != "reconstruction"}
    factors = BALANCES[spec.balance](weighted.get("reconstruction", (0, None))[1], balanced, z, network.peers)
    weighted |= {name: pair for name, pair in network.normaliser.penalties(raw).items() if pair[0] > 0}
    # Entropy and regularisers are not means over images: they need the latents of all processes.
    every = network.peers.whole(z) if trial.latent.entropy_weight > 0 or trial.latent.regularisers else z
    if trial.latent.entropy_weight > 0:
        weighted["entropy"] = -trial.latent.entropy_weight, gaussian_entropy(every, trial.latent.entropy_floor)
    weighted |= regularisers(every, trial.latent)
    total = z.new_zeros(())
    multipliers: dict[str, Tensor] = {}
    for name, (weight, term) in (weighted | others).items():
        multiplier: float | Tensor = weight
        if name in factors:
            multiplier = multipliers[name] = weight * factors[name]
        total = total + multiplier * term
    return Losses(total, {name: term for name, (_, term) in (weighted | others).items()}, z, multipliers)
