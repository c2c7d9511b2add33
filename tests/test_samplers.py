"""Samplers on a Gaussian whose posterior mean is known, guidance, and independence of the batch size.

Data N(m, s^2 I): with noise e the flow's end is m + s e, the clean prediction is E[z|z_t] and the velocity
E[z - e|z_t], all in closed form.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch

from dsd_lab.core.diffusion.samplers import SAMPLERS, Interval, Solver, guided_velocity, sample_latents, sampled_labels
from dsd_lab.core.model.network import Network
from dsd_lab.evaluation.sampling import sample_images
from dsd_lab.specs.trial import Objective

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
    for sampler in SAMPLERS.keys() - {"sde"}:  # its last step is the drift of the SDE
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


# -- Guidance on an interval ---------------------------------------------------------------------------


def test_guidance_acts_inside_its_interval_and_costs_a_second_pass_only_there(double):
    z, y = noise(4), torch.zeros(4, dtype=torch.long)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    plain, guided, limited = (
        guided_velocity(GaussianNetwork("clean"), y, scale, Objective(), interval)(z, t)
        for scale, interval in ((1.0, None), (3.0, None), (3.0, Interval(0.3, 0.6)))
    )
    assert torch.equal(limited[[0, 3]], plain[[0, 3]]) and torch.equal(limited[1:3], guided[1:3])
    assert not torch.equal(plain, guided)
    network = GaussianNetwork("clean")
    sample_latents(network, noise(), torch.zeros(64, dtype=torch.long), "euler", 10, 3.0, Objective(), interval=Interval(0.25, 0.55))  # fmt: skip
    assert network.calls == 10 + 3  # t = 0.3, 0.4, 0.5


def test_the_ends_of_an_interval_are_guided_where_it_is_closed_and_not_where_it_is_open():
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert Interval(0.25, 0.75).holds(t).tolist() == [False, True, True, True, False]
    assert Interval(0.25, 0.75, open=True).holds(t).tolist() == [False, False, True, False, False]
    assert Interval(0.0, 1.0, open=True).holds(t).tolist() == [True, True, True, True, False]  # as JiT: 0 belongs to it


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_an_interval_of_all_times_is_plain_guidance(double, sampler):
    y = torch.zeros(64, dtype=torch.long)
    whole, plain = (
        sample_latents(GaussianNetwork("clean"), noise(), y, sampler, 6, 2.0, Objective(), interval=interval)
        for interval in (Interval(0.0, 1.0), None)
    )
    assert torch.equal(whole, plain)


# -- The adaptive solver -------------------------------------------------------------------------------


def adaptive(rtol, output="clean", guidance=1.0, count=64):
    network, y = GaussianNetwork(output), torch.zeros(count, dtype=torch.long)
    found = sample_latents(
        network, noise(count), y, "dopri5", 1, guidance, Objective(output=output), rtol=rtol, atol=rtol
    )
    return found, network.calls


def flow(output, end=0.999):
    """scipy's RK45 on the same flow, image by image, then the same Euler step."""
    velocity = guided_velocity(GaussianNetwork(output), torch.zeros(1, dtype=torch.long), 1.0, Objective(output=output))

    def slope(t, z):
        at = torch.full((1,), t, dtype=torch.float64)
        return velocity(torch.from_numpy(z).reshape(1, 4, 2), at).flatten().numpy()

    found = []
    for e in noise(3).flatten(1).numpy():
        z = scipy.integrate.solve_ivp(slope, (0, end), e, "RK45", rtol=1e-10, atol=1e-10).y[:, -1]
        found.append(z + (1 - end) * slope(end, z))
    return torch.from_numpy(np.stack(found)).reshape(3, 4, 2)


@pytest.mark.parametrize("output", ["clean", "velocity"])
def test_the_adaptive_solver_agrees_with_scipys_and_its_error_follows_the_tolerance(double, output):
    expected = flow(output)
    errors = [float((adaptive(rtol, output, count=3)[0] - expected).abs().max()) for rtol in (1e-3, 1e-5, 1e-7)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 1e-4 and errors[2] < 2e-6


def test_a_smaller_tolerance_takes_more_network_calls(double):
    assert adaptive(1e-3)[1] < adaptive(1e-5)[1] < adaptive(1e-8)[1]


def test_a_cubic_is_integrated_exactly_in_few_steps():
    times = []

    def velocity(z, t, rows=None):
        times.append(float(t[0]))
        return (4 * t**3).reshape(-1, 1).expand_as(z).clone()

    found = SAMPLERS["dopri5"](velocity, torch.zeros(2, 3, dtype=torch.float64), Solver(rtol=1e-9, atol=1e-9))
    euler_tail = 0.999**4 + 0.001 * 4 * 0.999**3
    assert float((found - euler_tail).abs().max()) < 1e-9
    assert len(times) < 40 and times[0] == 0 and times[-1] == pytest.approx(0.999)


def test_times_and_steps_are_an_images_own(double):
    """A stiff image beside easy ones takes more calls for itself and changes nothing for them."""

    def velocity(speeds):
        counts = torch.zeros(len(speeds))

        def v(z, t, rows=None):
            rows = torch.arange(len(speeds)) if rows is None else rows
            counts[rows] += 1
            return speeds[rows].reshape(-1, 1) * torch.cos(speeds[rows] * t).reshape(-1, 1).expand_as(z)

        return v, counts

    speeds = torch.tensor([1.0, 200.0, 3.0], dtype=torch.float64)
    together, counts = velocity(speeds)
    found = SAMPLERS["dopri5"](together, torch.zeros(3, 2, dtype=torch.float64), Solver())
    for i, speed in enumerate(speeds):
        alone, calls = velocity(speed[None])
        expected = SAMPLERS["dopri5"](alone, torch.zeros(1, 2, dtype=torch.float64), Solver())
        assert torch.equal(found[i], expected[0]) and counts[i] == calls[0]
    assert counts[1] > 5 * counts[0]


def test_a_velocity_that_is_not_finite_ends_the_adaptive_solver():
    found = SAMPLERS["dopri5"](lambda z, t, rows=None: torch.full_like(z, torch.nan), torch.zeros(2, 3), Solver())
    assert bool(found.isnan().all())


# -- The SDE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["clean", "velocity"])
def test_the_sde_has_the_marginals_of_the_flow(output):
    e = torch.randn(400, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.zeros(400, dtype=torch.long)
    found = sample_latents(GaussianNetwork(output), e, y, "sde", 60, 1.0, Objective(output=output))
    assert float(found.mean()) == pytest.approx(float(MEANS[0]), abs=0.02)
    assert float(found.std()) == pytest.approx(S, rel=0.04)
    paired = float(torch.corrcoef(torch.stack([found.flatten(), e.flatten()]))[0, 1])
    assert abs(paired) < 0.9  # the flow would give m + s e: noise on the way makes another image of it
    middle = []

    def remember(z, t, rows=None):
        middle.append((float(t[0]), z))
        return guided_velocity(GaussianNetwork(output), y, 1.0, Objective(output=output))(z, t)

    SAMPLERS["sde"](remember, e, Solver(steps=60))
    t, z = middle[30]
    assert float(z.std()) == pytest.approx((t**2 * S**2 + (1 - t) ** 2) ** 0.5, rel=0.03)


def test_the_last_step_of_the_sde_is_the_drift_alone_from_004_before_the_end():
    """As SiT's `last_step="Mean"` and REPA's euler_maruyama_sampler: times linspace(1, 0.04, N) and then 0, in their t."""
    times = []

    def velocity(z, t, rows=None):
        times.append(float(t[0]))
        return torch.full_like(z, 2.0)

    e = torch.zeros(3, 4, 2, dtype=torch.float64)
    found = [SAMPLERS["sde"](velocity, e, Solver(steps=5, seed=seed)) for seed in (0, 0, 1)]
    assert times[:5] == pytest.approx([0.0, 0.24, 0.48, 0.72, 0.96])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    one = SAMPLERS["sde"](velocity, e + 1.0, Solver(steps=1))
    assert one.flatten().tolist() == pytest.approx([1.0 + (2.0 + 0 - 1.0)] * 24)  # from t = 0 to 1: z + v - z
    ahead = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []

    def recorded(z, t, rows=None):
        seen.append(z.clone())
        return ahead[len(seen) - 1].expand_as(z)

    last = SAMPLERS["sde"](recorded, torch.zeros(1, 3, 2, dtype=torch.float64), Solver(steps=5))
    v, z = ahead[4], seen[4]
    assert torch.allclose(last, z + 0.04 * (v + 0.96 * v - z))


def test_a_network_without_classes_in_training_is_sampled_without_one():
    y = torch.tensor([0, 3, 1])
    assert sampled_labels(y, 1.0, 10).tolist() == [10, 10, 10]
    assert sampled_labels(y, 0.5, 10) is y and sampled_labels(y, 0.0, 10) is y


def test_the_noise_of_the_sde_is_an_images_own_and_depends_on_the_seed():
    y = torch.zeros(6, dtype=torch.long)

    def drawn(e, **more):
        return sample_latents(GaussianNetwork("clean"), e, y[: len(e)], "sde", 5, 1.0, Objective(), **more)

    e = noise(6)
    whole = drawn(e)
    assert torch.allclose(whole, torch.cat([drawn(e[:2]), drawn(e[2:], first=2)]), rtol=0, atol=1e-6)
    assert not torch.allclose(whole, drawn(e, seed=1)) and not torch.allclose(whole, drawn(e, first=1))


# -- Images ----------------------------------------------------------------------------------------


@pytest.fixture
def network(tiny_trial):
    torch.manual_seed(0)
    network = Network(tiny_trial(), 1, 10).eval()
    with torch.no_grad():
        for part in [*network.blocks, *network.heads.values()]:
            part.modulation.weight.normal_(std=0.2)
    return network


def images(network, trial, y, seed=0, sampler="heun", **more):
    return sample_images(network, trial, y, sampler, 5, 2.0, seed, torch.device("cpu"), **more)


@pytest.mark.parametrize(
    ("sampler", "count", "batch"),
    [("heun", 23, 1), ("heun", 23, 5), ("heun", 23, 8), ("heun", 23, 23), ("sde", 23, 5), ("dopri5", 4, 3)],
)
def test_images_do_not_depend_on_the_batch_size(network, tiny_trial, sampler, count, batch):
    y, more = torch.arange(count) % 10, {"sampler": sampler, "rtol": 1e-3, "atol": 1e-3}
    expected, found = images(network, tiny_trial(), y, **more), images(network, tiny_trial(), y, **more, batch=batch)
    assert found.shape == (count, 1, 8, 8) and found.dtype == torch.uint8
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
