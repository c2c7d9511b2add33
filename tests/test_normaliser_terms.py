"""Noisy normalisers and the latents' own loss terms: closed forms, finite differences, and where they reach."""

import copy
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.network import Network
from dsd_lab.core.model.normalisers import NORMALISERS, divergence_from_normal, gaussian_entropy
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.events import Logged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.flops import count_shape
from dsd_lab.specs.trial import Latent

CPU = torch.device("cpu")
LAYOUTS = ("modular", "coupled")


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_finite_difference(function, at):
    """The gradient of a scalar function is its symmetric difference quotient, in three random directions."""
    point = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    assert float(gradient.norm()) > 0
    for seed in range(3):
        direction = normals(*at.shape, seed=seed + 100)
        numeric = (function(at + 1e-5 * direction) - function(at - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-6, abs=1e-9)


# -- Noise -------------------------------------------------------------------------------------------


def test_fixed_noise_adds_noise_of_its_standard_deviation_and_none_without_noise():
    normaliser, raw, noise = (
        NORMALISERS["fixed_noise"](8, Latent(noise=0.3)),
        normals(4, 3, 8),
        normals(4, 3, 8, seed=1),
    )
    assert torch.equal(normaliser(raw), raw)
    assert torch.allclose(normaliser(raw, noise) - raw, 0.3 * noise)


def test_a_kl_latent_has_the_mean_and_variance_that_the_encoder_gives():
    normaliser = NORMALISERS["kl"](2, Latent())
    mean, std = torch.tensor([0.5, -2.0]).double(), torch.tensor([0.1, 3.0]).double()
    raw = torch.cat([mean, 2 * std.log()]).expand(50_000, 1, 4)
    z = normaliser(raw, normals(50_000, 1, 2))
    assert torch.allclose(z.mean((0, 1)), mean, atol=0.05)
    assert torch.allclose(z.std((0, 1)), std, rtol=0.02)
    assert torch.equal(normaliser(raw), mean.expand(50_000, 1, 2))


@pytest.mark.parametrize("log_variance", [-1e6, 1e6])
def test_extreme_log_variances_leave_latents_penalty_and_gradient_finite(log_variance):
    raw = torch.tensor([[[1.0, log_variance]]], requires_grad=True)
    normaliser = NORMALISERS["kl"](1, Latent())
    total = normaliser(raw, torch.ones(1, 1, 1)).sum() + normaliser.penalties(raw)["kl"][1]
    total.backward()
    assert bool(torch.isfinite(total)) and bool(torch.isfinite(raw.grad).all())


# -- The terms ---------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_torchs_distributions():
    mean, log_variance = normals(5, 3, 4), normals(5, 3, 4, seed=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    assert float(divergence_from_normal(mean, log_variance)) == pytest.approx(float(expected), rel=1e-12)
    assert float(divergence_from_normal(torch.zeros(3), torch.zeros(3))) == 0


@pytest.mark.parametrize("floor", [1e-4, 0.5])
def test_the_entropy_is_that_of_a_gaussian_with_the_tokens_covariance(floor):
    z = normals(40, 3, 4) @ normals(4, 4, seed=1) + 7
    covariance = torch.cov(z.flatten(0, 1).T, correction=0) + floor * torch.eye(4)
    expected = MultivariateNormal(torch.zeros(4).double(), covariance).entropy() / 4
    assert float(gaussian_entropy(z, floor)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_scaling_the_latents_adds_the_logarithm_of_the_scale_to_the_entropy(scale):
    z = normals(40, 3, 4)
    found = gaussian_entropy(scale * z, 1e-12) - gaussian_entropy(z, 1e-12)
    assert float(found) == pytest.approx(math.log(scale), abs=1e-9)


def test_a_lost_direction_costs_what_the_floor_says_and_keeps_a_finite_gradient():
    z = normals(400, 3, 2)
    z[..., 1] = 0
    lost = z.requires_grad_()
    entropy = gaussian_entropy(lost, 1e-4)
    variance = float(z.detach()[..., 0].var(correction=0))
    expected = 0.5 * (math.log(2 * math.pi * math.e) + (math.log(variance + 1e-4) + math.log(1e-4)) / 2)
    assert float(entropy.detach()) == pytest.approx(expected, rel=1e-9)
    entropy.backward()
    assert bool(torch.isfinite(lost.grad).all())


def test_fewer_tokens_than_channels_have_a_finite_entropy():
    assert math.isfinite(float(gaussian_entropy(normals(2, 1, 16), 1e-4)))


def test_the_gradients_of_divergence_and_entropy_are_finite_differences():
    normaliser = NORMALISERS["kl"](4, Latent())
    # `penalties` works in float32; its formula is differenced in float64.
    assert_finite_difference(lambda raw: divergence_from_normal(*raw.chunk(2, -1)), normals(6, 3, 8))
    assert_finite_difference(lambda z: gaussian_entropy(z, 1e-2), normals(6, 3, 4))
    raw = normals(6, 3, 8).float()
    assert float(normaliser.penalties(raw)["kl"][1]) == pytest.approx(float(divergence_from_normal(*raw.chunk(2, -1))))


@pytest.mark.parametrize("name", ["fixed_noise", "kl"])
def test_the_gradient_through_the_noise_is_a_finite_difference(name):
    normaliser, noise = NORMALISERS[name](4, Latent(noise=0.5)), normals(6, 3, 4, seed=1)
    at = normals(6, 3, 4 * normaliser.inputs)
    assert_finite_difference(lambda raw: normaliser(raw, noise).sin().sum(), at)


# -- In the objective and in training ------------------------------------------------------------------


def built(trial):
    torch.manual_seed(0)
    network = Network(trial, 1, 10)
    with torch.no_grad():
        for part in [*network.blocks, *network.heads.values()]:
            part.modulation.weight.normal_(std=0.1)
    return network


def batch(digits, latent_e=None):
    x, y = digits.train.at(torch.arange(8), CPU)
    return x, Draws(torch.linspace(0.1, 0.9, 8), normals(8, 4, 8).float(), y, None, latent_e)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_total_has_the_penalty_with_its_weight_and_the_entropy_with_a_minus(tiny_trial, digits, layout):
    latent = {"normaliser": "kl", "kl_weight": 0.7, "entropy_weight": 0.3}
    trial = tiny_trial(latent=latent, network={"layout": layout})
    network = built(trial)
    x, draws = batch(digits, normals(8, 4, 8, seed=1).float())
    found = losses(network, copy.deepcopy(network), x, draws, trial)
    value = {name: float(term) for name, term in found.terms.items()}
    assert set(value) == {"reconstruction", "diffusion", "kl", "entropy"}
    expected = value["reconstruction"] + value["diffusion"] + 0.7 * value["kl"] - 0.3 * value["entropy"]
    assert float(found.total) == pytest.approx(expected, rel=1e-6)
    mean, log_variance = network.encode_raw(x).chunk(2, -1)
    z = mean + (log_variance / 2).exp() * draws.latent_e
    assert torch.allclose(found.z, z, atol=1e-6)
    assert value["kl"] == pytest.approx(float(divergence_from_normal(mean, log_variance)), rel=1e-5)
    assert value["entropy"] == pytest.approx(float(gaussian_entropy(z, 1e-4)), rel=1e-5)


def test_terms_of_zero_weight_are_left_out(tiny_trial, digits):
    trial = tiny_trial(latent={"normaliser": "kl", "kl_weight": 0.0})
    network = built(trial)
    assert set(losses(network, network, *batch(digits), trial).terms) == {"reconstruction", "diffusion"}


@pytest.mark.parametrize("name", ["fixed_noise", "kl"])
def test_an_ema_target_with_equal_weights_is_a_stop_gradient_noise_and_all(tiny_trial, digits, name):
    found = []
    for target in ("ema", "stop_gradient"):
        trial = tiny_trial(latent={"normaliser": name}, objective={"target": target})
        network = built(trial)
        x, draws = batch(digits, normals(8, 4, 8, seed=1).float())
        found.append(float(losses(network, copy.deepcopy(network), x, draws, trial).terms["diffusion"]))
        quiet = float(losses(network, copy.deepcopy(network), *batch(digits), trial).terms["diffusion"])
        assert found[-1] != quiet
    assert found[0] == found[1]


CASES = {
    "fixed noise": {"normaliser": "fixed_noise"},
    "kl": {"normaliser": "kl"},
    "entropy": {"normaliser": "none", "entropy_weight": 0.01},
    "layernorm and entropy": {"entropy_weight": 0.01},
}


@pytest.mark.parametrize("case", CASES)
def test_training_resumes_to_the_same_bits_and_logs_its_terms(tiny_trial, digits, tmp_path, case):
    trial = tiny_trial(latent=CASES[case], training={"steps": 4}, observation={"checkpoint_every": 2})
    whole = Trainer(trial, 0, digits, CPU, tmp_path)
    events = list(whole.run())
    logged = {name for event in events if isinstance(event, Logged) for name in event.metrics}
    assert ("train/kl" in logged) == (case == "kl")
    assert ("train/entropy" in logged) == ("entropy" in case)
    newest = max(tmp_path.glob("step-*"))
    newest.rename(newest.with_name("left-out"))
    again = Trainer(trial, 0, digits, CPU, tmp_path)
    assert again.resume() and again.step == 2
    list(again.run())
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), whole.network.parameters(), strict=True))


def test_the_noise_of_latents_is_a_function_of_seed_and_step_and_changes_no_other_number(tiny_trial, digits):
    noisy = [Trainer(tiny_trial(latent={"normaliser": "kl"}), seed, digits, CPU) for seed in (0, 0, 1)]
    plain = Trainer(tiny_trial(), 0, digits, CPU).draw(3)[1]
    noisy[0].draw(0)
    first, same, other = (trainer.draw(3)[1] for trainer in noisy)
    assert plain.latent_e is None and torch.equal(first.latent_e, same.latent_e)
    for different in (other.latent_e, noisy[0].draw(4)[1].latent_e, first.e):
        assert not torch.equal(first.latent_e, different)
    assert all(torch.equal(getattr(plain, name), getattr(first, name)) for name in ("t", "e", "y"))


def test_probes_of_a_kl_latent_measure_the_mean_before_and_after_the_normaliser(tiny_trial, digits):
    trainer = Trainer(tiny_trial(latent={"normaliser": "kl"}), 0, digits, CPU)
    for _ in range(2):
        trainer.train_step()
    metrics, _ = trainer.probe_set.measure(trainer.network, trainer.target_encoder)
    assert metrics["latent/variance"] == metrics["latent/variance/pre"] > 0
    assert any(name.startswith("interference/") for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_interference_is_absent_without_a_diffusion_loss_whatever_other_terms_there_are(tiny_trial, digits):
    trial = tiny_trial(latent={"normaliser": "kl", "entropy_weight": 0.1}, objective={"diffusion_weight": 0.0})
    trainer = Trainer(trial, 0, digits, CPU)
    metrics, _ = trainer.probe_set.measure(trainer.network, None)
    assert not any(name.startswith("interference") for name in metrics)


def test_an_entropy_bonus_raises_the_entropy_of_what_it_trains(tiny_trial, digits):
    entropies = []
    for weight in (0.0, 1.0):
        latent = {"normaliser": "none", "entropy_weight": weight}
        trial = tiny_trial(latent=latent, training={"steps": 20, "batch_size": 32}, optimiser={"lr": 3e-3})
        trainer = Trainer(trial, 0, digits, CPU)
        for _ in range(20):
            trainer.train_step()
        with torch.no_grad():
            entropies.append(float(gaussian_entropy(trainer.network.encode(trainer.probe_set.x), 1e-4)))
    assert entropies[1] > entropies[0] + 0.1


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_counted_without_weights(tiny_trial, case):
    shape = count_shape(tiny_trial(latent=CASES[case]), 1, 10)
    assert shape["flops_per_image"] > 0
    plain = count_shape(tiny_trial(), 1, 10)["params"]["total"]
    assert shape["params"]["total"] - plain == (8 * 16 + 8 if case == "kl" else 0)
