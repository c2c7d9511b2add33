"""Rival cures of collapse: the pixel anchor, a share of the diffusion gradient, regularisers, bounded latents."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy import integrate

from dsd_lab.cli.main import main
from dsd_lab.core.diffusion.balance import encoder_gradient, with_gradient
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.diffusion.regularisers import REGULARISERS
from dsd_lab.core.model.normalisers import NORMALISERS
from dsd_lab.core.training.batches import draw_batch
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.identity import trial_id
from dsd_lab.specs.trial import Latent, Objective, Trial

CPU = torch.device("cpu")
JOINT = {"target": "live", "output": "velocity", "loss_space": "velocity"}


def batch(trial, digits):
    trainer = Trainer(trial, 0, digits, CPU)
    torch.manual_seed(0)
    for head in trainer.network.heads.values():  # zero at the start, where nothing would be seen
        torch.nn.init.normal_(head.out.weight, std=0.1)
    return trainer, *draw_batch(trial, 0, 0, digits, trainer.network, CPU)


def gradients(trainer, x, draws, step=0):
    network = copy.deepcopy(trainer.network)
    found = losses(network, trainer.target_encoder, x, draws, trainer.trial, step=step)
    found.total.backward()
    return found, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}


# -- The anchor ----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["velocity", "clean"])
@pytest.mark.parametrize("draws_an_image", [1, 2])
def test_the_anchor_decodes_the_clean_prediction(tiny_trial, digits, output, draws_an_image):
    objective = JOINT | {"output": output, "anchor_weight": 0.5}
    trial = tiny_trial(objective=objective, training={"noise_draws": draws_an_image})
    trainer, x, draws = batch(trial, digits)
    network = trainer.network
    found = losses(network, None, x, draws, trial)
    z = network.encode(x).repeat(draws_an_image, 1, 1)
    t = draws.t[:, None, None]
    z_t = t * z + (1 - t) * draws.e
    out = network.denoise(z_t, draws.t, draws.y)
    clean = out if output == "clean" else z_t + (1 - t) * out
    pixels = (network.decode(clean) - x.repeat(draws_an_image, 1, 1, 1)).square().mean()
    torch.testing.assert_close(found.terms["anchor"], pixels)
    terms = found.terms
    torch.testing.assert_close(found.total, terms["reconstruction"] + terms["diffusion"] + 0.5 * pixels)


def test_the_anchor_reaches_decoder_denoiser_and_where_it_is_live_the_encoder(tiny_trial, digits):
    for noised, reaches in (("live", True), ("detached", False)):
        fields = {"noised": noised, "target": "stop_gradient", "output": "clean", "loss_space": "clean"}
        trial = tiny_trial(
            objective=fields | {"anchor_weight": 1.0, "reconstruction_weight": 0.0, "diffusion_weight": 1e-12}
        )
        trainer, x, draws = batch(trial, digits)
        _, found = gradients(trainer, x, draws)
        assert found["latent_in.weight"].norm() > 0
        assert found["noisy_in.weight"].norm() > 0
        assert bool(found["patch_in.weight"].norm() > 1e-9) is reaches


def test_an_anchor_without_a_diffusion_loss_is_refused(tiny_trial):
    with pytest.raises(ValueError, match="anchor_weight: there is no clean prediction"):
        tiny_trial(objective={"diffusion_weight": 0.0, "anchor_weight": 1.0})
    with pytest.raises(ValueError, match="anchor_perceptual_weight needs the name of a timm model"):
        tiny_trial(objective={"anchor_perceptual_weight": 1.0})


def test_the_anchors_perceptual_distance_is_that_of_the_same_images(tiny_trial, digits):
    backbone = {"perceptual_backbone": "test_resnet", "perceptual_weights": "random"}
    trial = tiny_trial(objective=JOINT | backbone | {"anchor_perceptual_weight": 0.25})
    trainer, x, draws = batch(trial, digits)
    found = losses(trainer.network, None, x, draws, trial, trainer.auxiliaries)
    assert set(found.terms) == {"reconstruction", "diffusion", "anchor_perceptual"}
    assert found.terms["anchor_perceptual"] > 0


# -- The share of the gradient ---------------------------------------------------------------------


@pytest.mark.parametrize("target", ["live", "stop_gradient"])
def test_a_share_scales_what_the_encoder_gets_and_nothing_else(tiny_trial, digits, target):
    found = {}
    for share in (0.0, 0.25, 1.0):
        trial = tiny_trial(
            objective=JOINT | {"target": target, "encoder_gradient": share, "reconstruction_weight": 1e-12}
        )
        terms, found[share] = gradients(*batch(trial, digits))
        found[share]["loss"] = terms.total.detach()
    for name in ("loss", "noisy_in.weight", "heads.denoise.out.weight"):
        assert torch.equal(found[0.0][name], found[1.0][name])
    encoder = "patch_in.weight"
    assert found[1.0][encoder].norm() > 0
    torch.testing.assert_close(found[0.25][encoder], 0.25 * found[1.0][encoder], rtol=1e-4, atol=1e-9)
    assert found[0.0][encoder].norm() < 1e-9


def test_a_share_of_nothing_is_a_detached_encoder(tiny_trial, digits):
    zero = tiny_trial(objective=JOINT | {"encoder_gradient": 0.0})
    detached = tiny_trial(objective=JOINT | {"target": "stop_gradient", "noised": "detached"})
    (_, a), (_, b) = (gradients(*batch(trial, digits)) for trial in (zero, detached))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("ramp", "middle"), [("linear", 0.4), ("sigmoid", 0.4)])
def test_the_ramp_goes_from_nothing_to_the_whole(ramp, middle):
    spec = Objective(encoder_gradient=0.8, encoder_gradient_warmup=100, encoder_gradient_ramp=ramp)
    shares = [encoder_gradient(spec, step) for step in range(150)]
    assert shares[0] == pytest.approx(0.0, abs=1e-12)
    assert shares[50] == pytest.approx(middle)
    assert shares[100:] == [0.8] * 50
    assert all(a <= b for a, b in itertools.pairwise(shares))
    if ramp == "sigmoid":
        logistic = 1 / (1 + np.exp(-12 * (np.array([0.0, 0.3, 1.0]) - 0.5)))
        assert shares[30] == pytest.approx(0.8 * (logistic[1] - logistic[0]) / (logistic[2] - logistic[0]))


def test_the_trainer_follows_the_ramp(tiny_trial, digits):
    objective = JOINT | {"encoder_gradient_warmup": 4}
    trainer = Trainer(tiny_trial(objective=objective), 0, digits, CPU)
    for step in range(5):
        trainer.step = step
        x, draws = trainer.draw(0)
        trainer.gradients(x, draws)
        mine = {name: p.grad.clone() for name, p in trainer.network.named_parameters() if p.grad is not None}
        _, expected = gradients(trainer, x, draws, step)
        assert all(torch.equal(mine[name], expected[name]) for name in mine)


def test_forward_is_the_same_to_the_bit():
    z = torch.randn(3, 4, 5)
    assert torch.equal(with_gradient(z, 0.3), z)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"encoder_gradient_ramp": "sigmoid"}, True),
        ({"encoder_gradient": 0.5}, False),
        ({"encoder_gradient_warmup": 5}, False),
        ({"encoder_gradient": 0.5, "noised": "detached", "target": "stop_gradient"}, "detached"),
        ({"anchor_weight": 1.0}, False),
    ],
)
def test_identity(change, same):
    detached = {"noised": "detached", "target": "stop_gradient"} if same == "detached" else {}
    ids = [trial_id(Trial.model_validate({"objective": JOINT | fields}), 0) for fields in (detached, change)]
    assert (ids[0] == ids[1]) is bool(same)


# -- Regularisers ------------------------------------------------------------------------------------


def value(name, z):
    return float(REGULARISERS.bound(name, Latent())(z))


def test_variance_terms_are_their_formulas():
    z = torch.randn(7, 4, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    tokens = z.reshape(-1, 3).numpy()
    assert value("variance_expansion", z) == pytest.approx(np.mean(1 / (tokens.var(0) + 0.01)))
    assert value("vicreg_variance", z) == pytest.approx(np.maximum(0, 1 - np.sqrt(tokens.var(0, ddof=1) + 1e-4)).mean())
    covariance = np.cov(tokens.T)
    off = covariance - np.diag(np.diag(covariance))
    assert value("vicreg_covariance", z) == pytest.approx((off**2).sum() / 3)


def test_sigreg_is_the_distance_of_characteristic_functions():
    torch.manual_seed(0)
    z = torch.randn(500, 4, 1, dtype=torch.float64)  # of one channel, every direction is the axis
    sample = z.flatten().numpy()

    def distance(s):
        return abs(np.exp(1j * s * sample).mean() - np.exp(-(s**2) / 2)) ** 2 * np.exp(-(s**2) / 2)

    assert value("sigreg", z) == pytest.approx(integrate.quad(distance, -5, 5)[0], rel=0.02)


def test_sigreg_is_least_for_normal_latents():
    torch.manual_seed(1)
    normal = torch.randn(256, 4, 8)
    flat = torch.randn(256, 4, 1) @ torch.randn(1, 8)
    found = {name: value("sigreg", z) for name, z in {"normal": normal, "shrunk": 0.1 * normal, "flat": flat}.items()}
    assert found["normal"] < 0.01 < min(found["shrunk"], found["flat"])


@pytest.mark.parametrize("name", ["variance_expansion", "vicreg_variance", "vicreg_covariance", "sigreg"])
def test_terms_are_finite_and_have_a_gradient_where_latents_are_constant_or_one_channel(name):
    for z in (torch.zeros(4, 2, 3), torch.randn(4, 2, 1)):
        z.requires_grad_()
        found = REGULARISERS.bound(name, Latent())(z)
        found.backward()
        assert torch.isfinite(found)
        assert torch.isfinite(z.grad).all()


def test_a_regulariser_is_added_with_its_weight(tiny_trial, digits):
    trial = tiny_trial(
        latent={"normaliser": "none", "regularisers": {"sigreg": 0.5, "vicreg_variance": 0.0}}, objective=JOINT
    )
    trainer, x, draws = batch(trial, digits)
    found = losses(trainer.network, None, x, draws, trial)
    assert set(found.terms) == {"reconstruction", "diffusion", "sigreg"}
    torch.testing.assert_close(
        found.total, found.terms["reconstruction"] + found.terms["diffusion"] + 0.5 * found.terms["sigreg"]
    )


# -- Normalisers -------------------------------------------------------------------------------------


def test_rmsnorm_and_tanh_are_their_formulas():
    z = torch.randn(3, 4, 5) * 4
    built = {name: NORMALISERS.bound(name, Latent())(5, Latent(normaliser=name)) for name in ("rmsnorm", "tanh")}
    torch.testing.assert_close(built["rmsnorm"](z), z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    torch.testing.assert_close(built["tanh"](z), 3 * torch.tanh(z / 3))
    with pytest.raises(ValueError, match="eps"):
        Latent(normaliser="tanh", eps=1e-4)


@pytest.mark.parametrize("name", ["rmsnorm", "tanh"])
def test_they_train(tiny_trial, digits, name):
    trial = tiny_trial(latent={"normaliser": name, "normalise_prediction": True}, objective={"output": "clean"})
    assert all(event.reason is None for event in Trainer(trial, 0, digits, CPU).run() if hasattr(event, "reason"))


def test_the_shipped_spec_can_be_planned(tmp_path, capsys):
    """Weights, FLOPs and memory are counted on tensors without numbers, which not every operation takes."""
    assert main(["plan", "rival_cures", "--home", str(tmp_path)]) == 0
    assert "240 trials" in capsys.readouterr().out
