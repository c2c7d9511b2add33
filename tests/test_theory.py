"""The closed forms against their table, against adaptive quadrature, and against what probes measure."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from dsd_lab.core.diffusion import paths
from dsd_lab.core.observing import directions
from dsd_lab.core.observing.probes import ProbeSet
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.report.statistics.theory import has_closed_form, scale_gradient, time_rule
from dsd_lab.specs.trial import Trial

CPU = torch.device("cpu")
SCALES = (0.5, 1.0, 2.0)
VELOCITY = {"output": "velocity", "loss_space": "velocity"}
CLEAN = {"output": "clean", "loss_space": "clean"}
TABLE = {
    "joint, velocity": ({"target": "live"} | VELOCITY, (0.785, 1.571, 3.142)),
    "joint, clean, weighted": (
        {"target": "live", "weighting": "velocity", "clamp": 1e-6} | CLEAN,
        (0.785, 1.571, 3.142),
    ),
    "joint, clean": ({"target": "live"} | CLEAN, (0.273, 0.785, 2.050)),
    "sg, velocity": ({"target": "stop_gradient"} | VELOCITY, (0.194, 0.0, -0.776)),
    "sg, clean net, velocity space": (
        {"target": "stop_gradient", "output": "clean", "loss_space": "velocity", "clamp": 0.05},
        (0.191, -0.015, -0.841),
    ),
    "sg, clean, weighted, clamped": (
        {"target": "stop_gradient", "weighting": "velocity", "clamp": 0.05} | CLEAN,
        (-0.716, -1.502, -3.072),
    ),
    "sg, clean, weighted": (
        {"target": "stop_gradient", "weighting": "velocity", "clamp": 1e-6} | CLEAN,
        (-0.785, -1.571, -3.142),
    ),
    "sg, clean": ({"target": "stop_gradient"} | CLEAN, (-0.050, -0.215, -0.792)),
    "EMA, clean": ({"target": "ema"} | CLEAN, (-0.050, -0.215, -0.792)),
    "detached": ({"target": "stop_gradient", "noised": "detached"} | CLEAN, (0.0, 0.0, 0.0)),
}
TIMES = {
    "uniform": {},
    "logit-normal": {"distribution": "logit_normal", "mean": 0.4, "std": 1.3},
    "wide": {"distribution": "logit_normal", "mean": -2.0, "std": 6.0},
    "narrow": {"distribution": "logit_normal", "mean": 2.0, "std": 0.05},
    "shifted": {"distribution": "logit_normal", "shift": 3.0},
    "uniform, shifted": {"shift": 0.4},
}


def fields(objective=None, time=None):
    return Trial.model_validate({"objective": objective or {}, "time": time or {}}).model_dump()


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_derivatives_holds_to_its_printed_digits(row):
    """Within a unit of the last: -0.04948 (sg, clean at s = 0.5) is printed there as -0.050."""
    objective, expected = TABLE[row]
    found = scale_gradient(fields(objective), np.array(SCALES))
    assert found.tolist() == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("s", [0.01, 0.5, 1.0, 2.0, 30.0])
def test_closed_forms_hold_at_every_scale(s):
    shrink = math.pi / 2 * s
    assert float(scale_gradient(fields({"target": "live"} | VELOCITY), s)) == pytest.approx(shrink, rel=1e-9)
    decoupled = 2 * s**2 / (1 + s**2) * (math.log(s) + math.pi / (2 * s)) - shrink
    found = float(scale_gradient(fields({"target": "stop_gradient"} | VELOCITY), s))
    assert found == pytest.approx(decoupled, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", TIMES)
def test_times_are_averaged_over_the_distribution_in_use(name):
    """Moments of t against many draws of the trainer's own, and a derivative against scipy's adaptive rule."""
    spec = Trial.model_validate({"time": TIMES[name]}).time
    t, noise, weight = time_rule(spec.model_dump(), 0.05)
    assert t + noise == pytest.approx(np.ones(len(t)), abs=1e-12) and weight.sum() == pytest.approx(1)
    drawn = paths.draw_times(spec, 200_000, torch.Generator().manual_seed(0)).double().numpy()
    assert (weight * t).sum() == pytest.approx(drawn.mean(), abs=0.004)
    assert (weight * t**2).sum() == pytest.approx((drawn**2).mean(), abs=0.004)


def test_a_logit_normal_derivative_agrees_with_an_adaptive_quadrature():
    s, density = 0.7, lambda n: math.exp(-n * n / 2) / math.sqrt(2 * math.pi)

    def integrand(n):
        t = 1 / (1 + math.exp(-(0.4 + 1.3 * n)))
        k = (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)
        return 2 * s**2 * (k * t - 1) ** 2 * density(n)

    found = scale_gradient(fields({"target": "live"} | VELOCITY, TIMES["logit-normal"]), s)
    assert float(found) == pytest.approx(quad(integrand, -9, 9, epsabs=1e-12)[0], rel=1e-9)


@pytest.mark.parametrize("objective", [row[0] for row in TABLE.values()], ids=list(TABLE))
def test_a_direction_without_variance_has_no_gradient_and_shapes_are_kept(objective):
    found = scale_gradient(fields(objective), np.array([[0.0, 1.0, 2.0]]))
    assert found.shape == (1, 3) and found[0, 0] == 0
    assert found[0, 2] == pytest.approx(float(scale_gradient(fields(objective), 2.0)))


@pytest.mark.parametrize(("section", "key"), [("objective", "weighting"), ("time", "distribution")])
def test_what_the_closed_forms_are_not_about_is_refused(section, key):
    unknown = fields()
    unknown[section][key] = "a later one"
    assert has_closed_form(fields()) and not has_closed_form(unknown)
    with pytest.raises(ValueError, match="no closed form"):
        scale_gradient(unknown, 1.0)
    assert not has_closed_form(fields({"diffusion_weight": 0.0}))


# -- What probes measure ---------------------------------------------------------------------------------


def test_the_derivative_along_principal_directions_is_that_of_finite_differences():
    source = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 3, generator=source, dtype=torch.float64)
    z = torch.randn(20, 4, 3, generator=source, dtype=torch.float64) @ mixing + 5

    def loss(z):
        return (torch.sin(z) * z).mean()

    gradient = torch.autograd.grad(loss(leaf := z.clone().requires_grad_()), leaf)[0]
    std, slope = directions.scale_gradient(z, gradient)
    flat = z.flatten(0, 1)
    mean = flat.mean(0)
    _, values, vectors = torch.linalg.svd(flat - mean, full_matrices=False)
    assert std.tolist() == pytest.approx((values / len(flat) ** 0.5).tolist())
    for k, u in enumerate(vectors):
        along = ((z - mean) @ u)[..., None] * u
        difference = float(loss(z + 1e-5 * along) - loss(z - 1e-5 * along)) / 2e-5
        assert float(slope[k]) == pytest.approx(difference, rel=1e-5)


def test_a_probe_whose_denoiser_is_the_posterior_mean_measures_the_closed_form(digits, monkeypatch):
    """Independent Gaussian latents of known scales: mean over seeds within four standard errors, direction by direction."""
    scales = torch.tensor([2.0, 1.0, 0.5, 0.25])
    objective = {"target": "stop_gradient"} | CLEAN
    trial = Trial.model_validate(
        {
            "objective": objective,
            "latent": {"normaliser": "none"},
            "network": {"latent_channels": 4, "width": 16, "heads": 2},
            "time": TIMES["logit-normal"],
            "probe": {"scale_images": 256},
        }
    )
    trainer = Trainer(trial, 0, digits, CPU)
    network = trainer.network

    def denoise(z_t, t, y):
        t = t.reshape(-1, 1, 1)
        return t * scales**2 / (t**2 * scales**2 + (1 - t) ** 2) * z_t

    monkeypatch.setattr(network, "denoise", denoise)
    found = []
    for seed in range(40):
        source = torch.Generator().manual_seed(seed)
        raw = torch.randn(256, network.tokens, 4, generator=source) * scales
        trainer.probe_set.e = torch.randn(256, network.tokens, 4, generator=source)
        metrics, spectra = trainer.probe_set._scale_gradients(network, None, raw)
        assert metrics["theory/scale_gradient/token"] == pytest.approx(sum(spectra["scale_gradient/token"]) / 4)
        found.append(spectra["scale_gradient/token"])
    expected = scale_gradient(fields(objective, TIMES["logit-normal"]), scales.numpy())
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 4 * error) and np.all(error < 0.05 * np.abs(expected))


def probed(trial, data):
    trainer = Trainer(trial, 0, data, CPU)
    for _ in range(3):
        trainer.train_step()
    return trainer.probe_set.measure(trainer.network, trainer.target_encoder)


NAMES = {"theory/scale_gradient/token", "theory/scale_gradient/token/pre"}


@pytest.mark.parametrize("normaliser", ["none", "layernorm", "batchnorm", "kl"])
def test_probes_record_the_derivative_after_and_before_the_normaliser(tiny_trial, digits, normaliser):
    trial = tiny_trial(latent={"normaliser": normaliser}, probe={"images": 32}, objective={"target": "live"})
    metrics, spectra = probed(trial, digits)
    assert metrics.keys() >= NAMES
    channels = trial.network.latent_channels
    for suffix in ("", "/pre"):
        std, slope = spectra[f"scale_std/token{suffix}"], spectra[f"scale_gradient/token{suffix}"]
        assert len(std) == len(slope) == channels and std == sorted(std, reverse=True)
    before = metrics["theory/scale_gradient/token/pre"]
    if normaliser in ("layernorm", "batchnorm"):
        assert before == pytest.approx(0, abs=1e-3 * abs(metrics["theory/scale_gradient/token"]))
    else:
        assert abs(before) > 1e-3 * abs(metrics["theory/scale_gradient/token"])


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": {"target": "stop_gradient", "noised": "detached"}},
        {"objective": {"diffusion_weight": 0.0}},
        {"probe": {"scale_images": 0}},
    ],
    ids=["detached", "control", "left out"],
)
def test_no_derivative_is_recorded_where_there_is_none(tiny_trial, digits, sections):
    metrics, spectra = probed(tiny_trial(**sections), digits)
    assert not any("scale" in name for name in (*metrics, *spectra))


@pytest.mark.parametrize("name", TIMES)
def test_probe_times_follow_the_training_distribution_quantile_by_quantile(digits, name):
    trial = Trial.model_validate({"time": TIMES[name], "probe": {"scale_images": 100}})
    network = Trainer(trial, 0, digits, CPU).network
    kept = ProbeSet(trial, digits, network, CPU).training_t
    t, _, weight = time_rule(trial.time.model_dump(), 0.05)
    expected = np.interp((np.arange(100) + 0.5) / 100, np.cumsum(weight) - weight / 2, t)
    assert kept.sort().values.numpy() == pytest.approx(expected, abs=0.05)
    assert not torch.equal(kept, kept.sort().values)


def test_a_trial_whose_objective_changes_on_the_way_has_no_closed_form():
    plain = Trial().model_dump()
    phased = Trial.model_validate({"training": {"phases": [{"start": 0.5, "objective": {"target": "live"}}]}})
    assert has_closed_form(plain) and not has_closed_form(phased.model_dump())
