"""VIV against its closed form, its integral, and the loss of a denoiser that is as good as one can be."""

import math

import pytest
import torch
from scipy.integrate import quad

from dsd_lab.core.observing import latent_metrics as lm
from dsd_lab.core.observing.directions import along_directions, class_viv
from dsd_lab.core.observing.probes import ProbeSet
from dsd_lab.core.training.trainer import Trainer

CPU = torch.device("cpu")
EIGENVALUES = torch.tensor([4.0, 1.0, 0.09, 1e-4, 0.0], dtype=torch.float64)


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_viv_is_the_integral_of_its_curve_over_uniform_times():
    integral = quad(lambda t: lm.viv_at(EIGENVALUES, t), 0, 1, points=[0.9, 0.99, 0.999], limit=500)[0]
    assert lm.viv(EIGENVALUES) == pytest.approx(math.pi / 2 * (2 + 1 + 0.3 + 0.01))
    assert lm.viv(EIGENVALUES) == pytest.approx(integral, rel=1e-6)


def test_viv_is_the_velocity_loss_of_the_posterior_mean():
    """A million draws of z, e and t, the velocity predicted as well as can be, within four standard errors."""
    std, count = EIGENVALUES[:3].sqrt(), 1_000_000
    z, e = gaussian(0, count, 3) * std, gaussian(1, count, 3)
    t = torch.rand(count, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z_t = t * z + (1 - t) * e
    velocity = (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * z_t
    errors = (velocity - (z - e)).square().sum(1)
    assert float(errors.mean()) == pytest.approx(lm.viv(EIGENVALUES), abs=4 * float(errors.std()) / count**0.5)


def test_viv_of_latents_is_that_of_their_covariances_and_falls_with_their_scale():
    z = gaussian(0, 64, 4, 3) * torch.tensor([2.0, 1.0, 0.1])
    metrics, spectra = lm.latent_metrics(z.float(), 2)
    for level in ("token", "image"):
        expected = math.pi / 2 * sum(math.sqrt(value) for value in spectra[level])
        assert metrics[f"latent/viv/{level}"] == pytest.approx(expected)
    half = lm.latent_metrics(z.float() / 2, 2)[0]["latent/viv/token"]
    assert half == pytest.approx(metrics["latent/viv/token"] / 2, rel=1e-4)


def test_class_viv_is_of_what_is_left_within_classes():
    """Classes that are points have none, and classes that say nothing all of it."""
    y = torch.arange(60) % 3
    points = gaussian(0, 3, 1, 2).expand(3, 4, 2)[y]
    assert class_viv(points, y, 3) == 0 < lm.viv(lm.covariance_spectrum(lm.token_matrix(points[:, :1])))
    z = gaussian(1, 60, 4, 2)
    assert class_viv(z, torch.zeros(60), 1) == pytest.approx(lm.viv(lm.covariance_spectrum(lm.token_matrix(z))))
    parts = [lm.viv(lm.covariance_spectrum(lm.token_matrix(z[:20]))), lm.viv(lm.covariance_spectrum(lm.token_matrix(z[20:])))]  # fmt: skip
    assert class_viv(z, (torch.arange(60) >= 20).long(), 5) == pytest.approx((20 * parts[0] + 40 * parts[1]) / 60)


def test_what_a_predictor_lets_through_is_measured_along_the_targets_directions():
    rotation = torch.linalg.qr(gaussian(0, 3, 3)).Q
    target = gaussian(1, 400, 3) * torch.tensor([3.0, 1.0, 0.2]) @ rotation
    gains = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    directions = torch.linalg.eigh((target - target.mean(0)).T @ (target - target.mean(0))).eigenvectors.flip(1)
    prediction = (target - target.mean(0)) @ directions * gains @ directions.T + 5
    std, through = along_directions(target, prediction)
    assert (through / std).tolist() == pytest.approx(gains.tolist(), abs=1e-9)
    assert std.tolist() == pytest.approx((lm.covariance_spectrum(target) ** 0.5).tolist())
    assert all(math.isnan(x) for x in along_directions(target, prediction * math.nan)[1])


@pytest.fixture
def probed(tiny_trial, digits, monkeypatch):
    """Probes of an EMA target at weights of its own, the target encoder, and what the denoiser is replaced by."""
    objective = {"target": "ema", "output": "clean", "loss_space": "clean"}
    trial = tiny_trial(objective=objective, probe={"images": 32, "scale_images": 16, "gradient_images": 0})
    network, target = (Trainer(trial, seed, digits, CPU).network for seed in (0, 1))
    probes = ProbeSet(trial, digits, network, CPU)
    times = []

    def measured(denoised):
        def denoise(z_t, t, y, **kept):
            times.append(t)
            return denoised(z_t)

        monkeypatch.setattr(network, "denoise", denoise)
        return probes.measure(network, target)

    def latents(of):
        return of.normalise(of.encode_raw(probes.x).float()).detach()

    return probes, latents(network), latents(target), measured, times


def test_probes_record_the_class_viv_of_their_own_classes(probed):
    probes, z, _, measured, _ = probed
    metrics, _ = measured(torch.zeros_like)
    expected = class_viv(z, probes.y, 10)
    assert metrics["latent/viv/class"] == pytest.approx(expected)
    other = class_viv(z, probes.y.flip(0), 10), class_viv(z, torch.zeros_like(probes.y), 10)
    assert not torch.equal(probes.y, probes.y.flip(0)) and all(abs(o / expected - 1) > 1e-3 for o in other)
    assert metrics["latent/viv/class"] < 0.999 * metrics["latent/viv/token"]


def test_probes_record_the_rank_differential_at_the_training_times(probed):
    """A denoiser that returns the target has no differential, and one that returns a point has the whole rank of the target."""
    probes, z, target, measured, times = probed
    rank, online = (lm.effective_rank(lm.token_matrix(part[:16])) for part in (target, z))
    metrics, spectra = measured(lambda z_t: target[: len(z_t)].clone())
    assert any(torch.equal(t, probes.training_t) for t in times)
    assert metrics["theory/rank_differential/token"] == pytest.approx(0, abs=1e-4)
    assert metrics["theory/rank_differential/online"] == pytest.approx(rank - online) and abs(rank - online) > 1e-3
    shown = [spectra[f"rank_differential/{side}/token"] for side in ("target", "prediction")]
    assert shown[0] == pytest.approx(shown[1], rel=1e-4) and len(shown[0]) == z.shape[-1]
    assert measured(torch.zeros_like)[0]["theory/rank_differential/token"] == pytest.approx(rank, rel=1e-4)
