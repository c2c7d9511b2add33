"""Samplers on a Gaussian whose posterior mean is known, guidance, and independence of the batch size.

Data N(m, s^2 I): with noise e the flow's end is m + s e, the clean prediction is E[z|z_t] and the velocity
E[z - e|z_t], all in closed form.
"""

import itertools
import math

import pytest
import torch

from dsd_lab.core.network import Network
from dsd_lab.core.samplers import SAMPLERS, guided_velocity, sample_latents
from dsd_lab.evaluation.generation import sample_images
from dsd_lab.specs.fields import Objective

S = 0.6
MEANS = torch.tensor([0.5, -1.5, 0.0], dtype=torch.float64)
"""Means by label; the last is that of no class."""


class GaussianNetwork:
    """Stands for a trained network: the posterior mean of N(MEANS[y], S^2 I) as clean prediction or velocity."""

    classes = 2

    def __init__(self, output):
        self.output, self.calls = output, 0

    def denoise(self, z_t, t, y):
        self.calls += 1
        t, m = t.reshape(-1, 1, 1).to(z_t), MEANS[y].reshape(-1, 1, 1).to(z_t)
        variance = t**2 * S**2 + (1 - t) ** 2
        off = (z_t - t * m) / variance
        return m + t * S**2 * off if self.output == "clean" else m + (t * S**2 - (1 - t)) * off


def noise(count=64):
    return torch.randn(count, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def double(monkeypatch):
    """Samplers cast network outputs to float32; order of convergence is measured without that rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def sample(output, sampler, steps, guidance=1.0, label=0):
    e = noise()
    y = torch.full((len(e),), label)
    return sample_latents(GaussianNetwork(output), e, y, sampler, steps, guidance, Objective(output=output))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_clean_and_a_velocity_network_of_one_posterior_give_the_same_samples(double, sampler, steps):
    clean, velocity = (sample(output, sampler, steps) for output in ("clean", "velocity"))
    assert torch.allclose(clean, velocity, rtol=0, atol=1e-6)  # times are float32


def test_the_last_step_of_a_clean_network_lands_on_its_prediction(double):
    network, last = GaussianNetwork("clean"), []
    original = network.denoise

    def remember(z_t, t, y):
        last.append(original(z_t, t, y))
        return last[-1]

    network.denoise = remember
    for sampler in SAMPLERS:
        found = sample_latents(network, noise(), torch.zeros(64, dtype=torch.long), sampler, 5, 1.0, Objective())
        assert torch.allclose(found, last[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("output", ["clean", "velocity"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_samples_converge_to_the_exact_flow_at_the_order_of_the_method(double, output, sampler, order):
    exact = MEANS[0] + S * noise()
    errors = [float((sample(output, sampler, steps) - exact).abs().max()) for steps in (32, 64, 128)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.25)
    assert errors[-1] < (0.05 if order == 1 else 2e-3)


def test_float32_latents_lose_nothing_that_shows(double):
    single = sample_latents(
        GaussianNetwork("clean"), noise().float(), torch.zeros(64, dtype=torch.long), "heun", 40, 1.0, Objective()
    )
    assert torch.allclose(single.double(), sample("clean", "heun", 40), atol=1e-5)


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 8), ("heun", 15)])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_number_of_network_calls_is_as_documented(sampler, calls, guidance):
    network = GaussianNetwork("clean")
    sample_latents(network, noise(), torch.zeros(64, dtype=torch.long), sampler, 8, guidance, Objective())
    assert network.calls == calls * (1 if guidance == 1 else 2)


@pytest.mark.parametrize("output", ["clean", "velocity"])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_goes_from_no_class_through_the_class_and_beyond(double, output, guidance):
    z, t = noise(8), torch.full((8,), 0.3, dtype=torch.float64)
    y = torch.tensor([0, 1] * 4)

    def at(labels, scale):
        return guided_velocity(GaussianNetwork(output), labels, scale, Objective(output=output))(z, t)

    conditional, none = at(y, 1.0), at(torch.full((8,), 2), 1.0)
    assert torch.allclose(at(y, guidance), none + guidance * (conditional - none), atol=1e-12)
    assert not torch.allclose(conditional, none)


def test_guidance_of_zero_ignores_the_label(double):
    assert torch.allclose(sample("clean", "euler", 10, 0.0, 0), sample("clean", "euler", 10, 0.0, 1), atol=1e-12)
    assert not torch.allclose(sample("clean", "euler", 10, 1.0, 0), sample("clean", "euler", 10, 1.0, 1))


def test_each_image_follows_its_own_label():
    e = noise(2)[:1].expand(2, 4, 2).clone()
    found = sample_latents(GaussianNetwork("clean"), e, torch.tensor([0, 1]), "heun", 60, 1.0, Objective())
    assert float((found[0] - found[1]).mean()) == pytest.approx(2.0, abs=0.01)


# -- Images ----------------------------------------------------------------------------------------


@pytest.fixture
def network(tiny_trial):
    torch.manual_seed(0)
    network = Network(tiny_trial(), 1, 10).eval()
    with torch.no_grad():
        for part in [*network.blocks, *network.heads.values()]:
            part.modulation.weight.normal_(std=0.2)
    return network


def images(network, trial, y, seed=0, **more):
    return sample_images(network, trial, y, "heun", 5, 2.0, seed, torch.device("cpu"), **more)


@pytest.mark.parametrize("batch", [1, 5, 8, 23, 256])
def test_images_do_not_depend_on_the_batch_size(network, tiny_trial, batch):
    y = torch.arange(23) % 10
    expected, found = images(network, tiny_trial(), y), images(network, tiny_trial(), y, batch=batch)
    assert found.shape == (23, 1, 8, 8) and found.dtype == torch.uint8
    # Products of another batch size may differ in the last bit, which may turn a rounding.
    assert int((found.int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("channels", [8, 5])
def test_images_do_not_depend_on_how_many_follow(tiny_trial, channels):
    """torch draws the last 16 numbers of a tensor anew where its size is no multiple of 16, as 9 x 4 x 5 is not."""
    trial, y = tiny_trial(network={"latent_channels": channels}), torch.arange(23) % 10
    network = Network(trial, 1, 10).eval()
    few, many = images(network, trial, y[:9]), images(network, trial, y)
    assert int((few.int() - many[:9].int()).abs().max()) <= 1


def test_images_depend_on_seed_and_label(network, tiny_trial):
    y = torch.zeros(6, dtype=torch.long)
    base = images(network, tiny_trial(), y)
    assert torch.equal(base, images(network, tiny_trial(), y))
    assert not torch.equal(base, images(network, tiny_trial(), y, seed=1))
    assert not torch.equal(base, images(network, tiny_trial(), y + 1))
    assert not torch.equal(base[0], base[1])
