"""The objectives against a table of derivatives, closed forms, quadrature and finite differences.

One latent direction z = a z0 with z0 ~ N(0, s^2), the denoiser frozen at the posterior mean, t uniform,
the derivative taken with respect to a at a = 1 by autograd through the real `diffusion_loss`. Losses are
squares of sums that are linear in (z, e), so the four points (+-s, +-1) integrate them exactly, and equal
weights in t are the midpoint rule.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from dsd_lab.core.diffusion.objectives import RECONSTRUCTIONS, TARGETS, diffusion_loss, losses
from dsd_lab.core.model.network import Network
from dsd_lab.core.randomness import Draws
from dsd_lab.specs.trial import Objective

SCALES = (0.5, 1.0, 2.0)
UNCLAMPED = 1e-6
CELLS = [
    cell
    for cell in itertools.product(
        ("live", "stop_gradient"),
        ("live", "detached"),
        ("velocity", "clean"),
        ("velocity", "clean"),
        ("none", "velocity"),
    )
    if not (cell[3] == "velocity" and cell[4] == "velocity")
]


@pytest.fixture
def double(monkeypatch):
    """The objective casts network outputs to float32, which 1 / (1 - t)^2 and small differences would magnify."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def midpoints(count=4000):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def posterior_mean(s, output):
    """E[z | z_t], or E[z - e | z_t], as a denoiser."""

    def denoise(z_t, t, y):
        t = t.reshape(-1, 1, 1)
        variance = t**2 * s**2 + (1 - t) ** 2
        return (t * s**2 if output == "clean" else t * s**2 - (1 - t)) / variance * z_t

    return denoise


def loss_and_derivative(s, spec, times=None):
    """Value of the diffusion loss and its derivative with respect to the scale of the encoder's output."""
    times = midpoints() if times is None else times
    signs = torch.tensor([(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)], dtype=torch.float64)
    t = times.repeat_interleave(4)
    z0, e = (signs.repeat(len(times), 1)[:, i].reshape(-1, 1, 1) for i in (0, 1))
    a = torch.ones((), dtype=torch.float64, requires_grad=True)
    z = a * s * z0
    z2 = TARGETS[spec.target](z, None, None)
    draws = Draws(t, e, torch.zeros(len(t), dtype=torch.long))
    loss = diffusion_loss(posterior_mean(s, spec.output), z, z2, draws, spec)
    (derivative,) = torch.autograd.grad(loss, a, allow_unused=True) if loss.requires_grad else (None,)
    return float(loss.detach()), 0.0 if derivative is None else float(derivative)


def by_hand(s, spec, t):
    """The expected derivative at one t, written out: 2 E[residual * d residual / d a]."""
    noise = 1 - t
    variance = t**2 * s**2 + noise**2
    through, target = float(spec.noised == "live"), float(spec.target == "live")
    clean, velocity = t * s**2 / variance, (t * s**2 - noise) / variance
    divisor = max(noise, spec.clamp)
    if spec.loss_space == "velocity":
        k, w = velocity if spec.output == "velocity" else (clean - 1) / divisor, 1.0
    else:
        k, w = clean if spec.output == "clean" else 1 + noise * velocity, 1.0
        w = divisor**-2 if spec.weighting == "velocity" else 1.0
    return 2 * w * s**2 * (k * t - 1) * (k * t * through - target)


TABLE = {
    "joint, velocity": (("live", "live", "velocity", "velocity", "none", 0.05), (0.785, 1.571, 3.142)),
    "joint, clean, weighted": (("live", "live", "clean", "clean", "velocity", UNCLAMPED), (0.785, 1.571, 3.142)),
    "joint, clean": (("live", "live", "clean", "clean", "none", 0.05), (0.273, 0.785, 2.050)),
    "sg, velocity": (("stop_gradient", "live", "velocity", "velocity", "none", 0.05), (0.194, 0.0, -0.776)),
    "sg, clean net, velocity space": (
        ("stop_gradient", "live", "clean", "velocity", "none", 0.05),
        (0.191, -0.015, -0.841),
    ),
    "sg, clean, weighted and clamped": (
        ("stop_gradient", "live", "clean", "clean", "velocity", 0.05),
        (-0.716, -1.502, -3.072),
    ),
    "sg, clean, weighted": (
        ("stop_gradient", "live", "clean", "clean", "velocity", UNCLAMPED),
        (-0.785, -1.571, -3.142),
    ),
    "sg, clean": (("stop_gradient", "live", "clean", "clean", "none", 0.05), (-0.050, -0.215, -0.792)),
    "detached, velocity": (("stop_gradient", "detached", "velocity", "velocity", "none", 0.05), (0.0, 0.0, 0.0)),
    "detached, clean": (("stop_gradient", "detached", "clean", "clean", "none", 0.05), (0.0, 0.0, 0.0)),
}


def objective(target="live", noised="live", output="clean", space="clean", weighting="none", clamp=0.05):
    return Objective(target=target, noised=noised, output=output, loss_space=space, weighting=weighting, clamp=clamp)


@pytest.mark.parametrize("row", TABLE)
def test_the_derivative_with_respect_to_the_latents_scale_is_the_designs(double, row):
    settings, expected = TABLE[row]
    found = [loss_and_derivative(s, objective(*settings))[1] for s in SCALES]
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("s", SCALES)
def test_closed_forms_hold_where_there_are_any(double, s):
    shrink = math.pi / 2 * s
    joint = loss_and_derivative(s, objective("live", "live", "velocity", "velocity"))
    assert joint == pytest.approx((shrink, shrink), abs=1e-3)
    decoupled = 2 * s**2 / (1 + s**2) * (math.log(s) + math.pi / (2 * s)) - shrink
    assert loss_and_derivative(s, objective("stop_gradient", "live", "velocity", "velocity"))[1] == pytest.approx(
        decoupled, abs=1e-3
    )
    weighted = objective("stop_gradient", "live", "clean", "clean", "velocity", UNCLAMPED)
    assert loss_and_derivative(s, weighted)[1] == pytest.approx(-shrink, abs=1e-3)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
@pytest.mark.parametrize("clamp", [0.05, 0.3])
def test_every_cell_agrees_with_a_quadrature_of_its_formula(double, cell, clamp):
    spec = objective(*cell, clamp)
    for s in SCALES:
        expected = quad(lambda t, s=s: by_hand(s, spec, t), 0, 1, points=[1 - clamp], limit=200)[0]
        assert loss_and_derivative(s, spec)[1] == pytest.approx(expected, abs=1e-3)


def test_the_oracles_hold_for_logit_normal_times_too(double):
    quantiles = norm.ppf(midpoints().numpy())
    times = torch.from_numpy(1 / (1 + np.exp(-(0.5 + 1.2 * quantiles))))
    for cell in (("live", "live", "velocity", "velocity"), ("stop_gradient", "live", "clean", "clean")):
        spec = objective(*cell)
        expected = quad(lambda u: by_hand(2.0, spec, 1 / (1 + math.exp(-(0.5 + 1.2 * u)))) * norm.pdf(u), -8, 8)[0]  # noqa: B023
        assert loss_and_derivative(2.0, spec, times)[1] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("output", ["velocity", "clean"])
def test_detached_latents_leave_a_gradient_through_a_live_target_only(double, output):
    for s in SCALES:
        assert loss_and_derivative(s, objective("stop_gradient", "detached", output))[1] == 0.0
        assert loss_and_derivative(s, objective("live", "detached", output))[1] > 0.01


# -- Equivalences on arbitrary networks ---------------------------------------------------------


@pytest.fixture
def setup(tiny_trial, digits):
    """A tiny network away from its symmetric start, a target copy, images and draws with 1 - t above every clamp."""
    torch.manual_seed(0)
    trial = tiny_trial(latent={"normaliser": "none"})
    network = Network(trial, 1, 10)
    with torch.no_grad():
        for part in [*network.blocks, *network.heads.values()]:
            part.modulation.weight.normal_(std=0.1)
            part.modulation.bias.normal_(std=0.1)
    x, y = digits.train.at(torch.arange(8), torch.device("cpu"))
    t = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9])
    return network, copy.deepcopy(network).requires_grad_(False), x, Draws(t, torch.randn(8, 4, 8), y)


def arbitrary(z_t, t, y):
    return torch.sin(3 * z_t + t.reshape(-1, 1, 1))


def test_a_weighted_clean_loss_is_the_velocity_loss_of_the_same_velocity_network(setup):
    *_, draws = setup
    values, gradients = [], []
    for space, weighting in (("velocity", "none"), ("clean", "velocity")):
        z = torch.randn(8, 4, 8, generator=torch.manual_seed(1)).requires_grad_()
        loss = diffusion_loss(arbitrary, z, z, draws, objective("live", "live", "velocity", space, weighting))
        values.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, z)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_under_a_stop_gradient_the_two_spaces_agree_in_value_but_not_in_gradient(setup):
    *_, draws = setup
    values, gradients = [], []
    for space, weighting in (("velocity", "none"), ("clean", "velocity")):
        z = torch.randn(8, 4, 8, generator=torch.manual_seed(1)).requires_grad_()
        loss = diffusion_loss(arbitrary, z, z.detach(), draws, objective("live", "live", "velocity", space, weighting))
        values.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, z)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


def test_the_loss_of_a_velocity_network_in_velocity_space_is_the_formula(setup):
    *_, draws = setup
    z, t = torch.randn(8, 4, 8), draws.t.reshape(-1, 1, 1)
    z_t = t * z + (1 - t) * draws.e
    expected = (arbitrary(z_t, t, None) - (z - draws.e)).square().mean()
    assert torch.equal(
        diffusion_loss(arbitrary, z, z, draws, objective("live", "live", "velocity", "velocity")), expected
    )


@pytest.mark.parametrize("target", ["live", "stop_gradient"])
def test_the_weighted_clean_space_is_the_velocity_loss_of_jit_and_unite(setup, double, target):
    """Both divide prediction and target by the clamped 1 - t: |(f - z_t) / max(1-t, c) - (z2 - z_t) / max(1-t, c)|^2."""
    *_, draws = setup
    t = torch.tensor([0.0, 0.3, 0.5, 0.9, 0.94, 0.96, 0.99, 1.0], dtype=torch.float64)
    draws = Draws(t, draws.e.double(), draws.y)
    found = []
    for form in ("ours", "theirs"):
        z = torch.randn(8, 4, 8, generator=torch.manual_seed(1)).double().requires_grad_()
        z2 = z if target == "live" else z.detach()
        spec = objective(target, "live", "clean", "clean", "velocity", 0.05)
        if form == "ours":
            loss = diffusion_loss(arbitrary, z, z2, draws, spec)
        else:
            column = t.reshape(-1, 1, 1)
            z_t, divisor = column * z + (1 - column) * draws.e, (1 - column).clamp_min(0.05)
            f = arbitrary(z_t, t, None)
            loss = ((f - z_t) / divisor - (z2 - z_t) / divisor).square().mean()
        found.append((float(loss.detach()), torch.autograd.grad(loss, z)[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-8, atol=1e-10)


def test_the_ema_target_carries_no_gradient_and_equals_a_stop_gradient_while_the_copy_is_equal(setup, tiny_trial):
    network, target, x, draws = setup
    target.requires_grad_(True)  # the objective, not this flag, must cut the path
    gradients = {}
    for kind in ("ema", "stop_gradient"):
        network.zero_grad()
        trial = tiny_trial(latent={"normaliser": "none"}, objective={"target": kind, "reconstruction_weight": 0.0})
        losses(network, target, x, draws, trial).total.backward()
        gradients[kind] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert all(p.grad is None for p in target.parameters())
    assert gradients["ema"].norm() > 0
    assert torch.equal(gradients["ema"], gradients["stop_gradient"])


# -- Finite differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_gradients_with_respect_to_the_latents_are_finite_differences_of_the_loss(setup, double, cell):
    network, _, x, draws = setup
    network.double()
    draws = Draws(draws.t.double(), draws.e.double(), draws.y)
    spec = objective(*cell)
    here = network.encode(x.double()).detach()

    def loss(z):
        """The loss as a function of the latents where they are live, all else held."""
        z2 = z if spec.target == "live" else here
        return diffusion_loss(network.denoise, z if spec.noised == "live" else here, z2, draws, spec)

    z = here.clone().requires_grad_()
    real = diffusion_loss(network.denoise, z, TARGETS[spec.target](z, x, None), draws, spec)
    gradient = torch.autograd.grad(real, z, allow_unused=True)[0] if real.requires_grad else None
    gradient = torch.zeros_like(here) if gradient is None else gradient
    for seed in range(3):
        direction = torch.randn(here.shape, generator=torch.manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            numeric = (loss(here + 1e-5 * direction) - loss(here - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_reconstructions_gradient_is_a_finite_difference(setup, kind):
    network, _, x, _ = setup
    network.double()
    x = x.double()
    z = network.encode(x).detach().requires_grad_()

    def loss(z):
        return RECONSTRUCTIONS[kind](network.decode(z), x)

    (gradient,) = torch.autograd.grad(loss(z), z)
    direction = torch.randn(z.shape, generator=torch.manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        numeric = (loss(z + 1e-6 * direction) - loss(z - 1e-6 * direction)) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-5)


# -- All terms together ----------------------------------------------------------------------------

EVERY = itertools.product(
    ("live", "stop_gradient", "ema"),
    ("live", "detached"),
    ("velocity", "clean"),
    ("velocity", "clean"),
    ("none", "velocity"),
)


@pytest.mark.parametrize("cell", list(EVERY), ids="-".join)
def test_every_combination_has_a_finite_loss_and_gradient_at_all_times(setup, tiny_trial, cell):
    network, target, x, draws = setup
    names = ("target", "noised", "output", "loss_space", "weighting")
    extreme = Draws(torch.tensor([0.0, 1e-7, 0.5, 0.95, 0.99, 1 - 1e-6, 1 - 6e-8, 1.0]), draws.e, draws.y)
    found = losses(network, target, x, extreme, tiny_trial(objective=dict(zip(names, cell, strict=True))))
    found.total.backward()
    assert torch.isfinite(found.total)
    assert set(found.terms) == {"reconstruction", "diffusion"}
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
    assert float(network.heads["denoise"].out.weight.grad.norm()) > 0


@pytest.mark.parametrize(
    ("weights", "terms"),
    [((2.0, 0.5), {"reconstruction", "diffusion"}), ((2.0, 0.0), {"reconstruction"}), ((0.0, 0.5), {"diffusion"})],
)
def test_the_total_is_the_weighted_sum_and_terms_of_zero_weight_are_left_out(setup, tiny_trial, weights, terms):
    network, target, x, draws = setup
    weights = dict(zip(("reconstruction_weight", "diffusion_weight"), weights, strict=True))
    found = losses(network, target, x, draws, tiny_trial(objective=weights))
    assert set(found.terms) == terms
    expected = sum(weights[f"{name}_weight"] * value.item() for name, value in found.terms.items())
    assert found.total.item() == pytest.approx(expected, rel=1e-6)


def test_a_term_of_zero_weight_is_not_computed(setup, tiny_trial, monkeypatch):
    network, target, x, draws = setup

    def refuse(*_):
        raise AssertionError("called for a term of zero weight")

    monkeypatch.setattr(network, "denoise", refuse)
    monkeypatch.setattr(target, "encode", refuse)
    losses(network, target, x, draws, tiny_trial(objective={"diffusion_weight": 0.0}))
    monkeypatch.undo()
    monkeypatch.setattr(network, "decode", refuse)
    losses(network, target, x, draws, tiny_trial(objective={"reconstruction_weight": 0.0}))


def test_decoder_noise_reaches_the_reconstruction_and_nothing_else(setup, tiny_trial):
    network, target, x, draws = setup
    noisy = Draws(draws.t, draws.e, draws.y, torch.randn(8, 4, 8))
    trial = tiny_trial(latent={"normaliser": "none", "decoder_noise": 0.5})
    quiet, loud = (losses(network, target, x, d, trial) for d in (draws, noisy))
    assert torch.equal(quiet.terms["diffusion"], loud.terms["diffusion"])
    z = network.encode(x)
    expected = torch.nn.functional.mse_loss(network.decode(z + 0.5 * noisy.decoder_e), x)
    assert loud.terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert loud.terms["reconstruction"].item() != quiet.terms["reconstruction"].item()
