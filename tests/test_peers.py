"""Losses and gradients of the variants after published peers, against the peers' formulas written out here.

What is compared is the shipped spec's own variant, on a narrow network, with its published code read as
formulas: UNITE (github.com/ShivamDuggal4/UNITE-tokenization-generation, 2389f2c: models/unite.py,
modules/denoiser.py, configs/imagenet.yaml), REPA-E (github.com/End2End-Diffusion/REPA-E, 3ad8046:
train_repae.py, models/sit.py) and LDM-is-AE (github.com/PolyU-VCLab/LDMisAE, e249bc1: ldm_is_ae/denoiser.py,
ldm_is_ae/backbone/dit.py, scripts/train_256.sh).
"""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_experiments import small

from dsd_lab.core.diffusion.auxiliary import Auxiliaries
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.diffusion.paths import draw_times
from dsd_lab.core.model.network import Network
from dsd_lab.core.model.normalisers import NORMALISERS
from dsd_lab.core.randomness import Draws, generator
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Latent, Time

SPECS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
PEERS = ("unite", "repa", "ldm", "jit", "sit", "genfirst", "speediff", "jedi", "ldlm", "dmvae")
CPU = torch.device("cpu")
B, T, C, CLASSES = 6, 4, 4, 10


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Losses cast to float32, which would hide small differences."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(scope="module")
def variants():
    plan = load_sweep(SPECS[0].parent / "gradient_path.yaml")
    return {trial.variant: trial.fields for trial in plan.trials}


class Built:
    """A variant's network away from its start, its auxiliaries, images and draws, in double precision."""

    def __init__(self, fields, draws_per_image=1):
        self.trial = small(fields)
        torch.manual_seed(0)
        self.network = Network(self.trial, 1, CLASSES)
        with torch.no_grad():
            for part in [*self.network.blocks, *self.network.heads.values()]:
                part.modulation.weight.normal_(std=0.1)
                part.modulation.bias.normal_(std=0.1)
            for p in self.network.normaliser.parameters():
                p.add_(0.3 * torch.randn_like(p))
        self.network.double()
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.auxiliaries = Auxiliaries(self.trial, self.network, CLASSES, CPU).double()
        self.x = torch.rand(B, 1, 8, 8, dtype=torch.float64) * 2 - 1
        labels = torch.arange(B)
        rows = draws_per_image * B
        t = torch.rand(rows, dtype=torch.float64)
        t[0] = 0.99  # where 1 - t is clamped
        y = labels.repeat(draws_per_image).masked_fill(torch.rand(rows) < 0.4, CLASSES)
        self.draws = Draws(t, torch.randn(rows, T, C, dtype=torch.float64), y, labels=labels)

    def gradients(self):
        """The total's gradient by name of the weight; absent where none arrives."""
        found = losses(self.network, self.target, self.x, self.draws, self.trial, self.auxiliaries)
        return found, gradients(found.total, self.network, self.auxiliaries)


def gradients(loss, *modules):
    named = [(name, p) for module in modules for name, p in module.named_parameters()]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name: g for (name, _), g in zip(named, found, strict=True) if g is not None and float(g.norm()) > 0}


def assert_same(found, expected):
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-12), name


def as_column(t):
    return t.reshape(-1, 1, 1)


def raw_denoiser(network, z_t, t, y):
    """The denoiser's output before any normaliser."""
    return network._run("denoise", network.noisy_in(z_t), network._condition("denoise", t, y))


# -- UNITE -------------------------------------------------------------------------------------------


def test_unites_loss_and_all_its_gradients_are_those_of_its_code(variants):
    built = Built(variants["after_unite"], draws_per_image=3)
    network, draws = built.network, built.draws
    scale, shift = network.normaliser.norm.weight, network.normaliser.norm.bias

    def norm(v):
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale + shift

    latents = norm(network.encode_raw(built.x))
    images, decoded = (built.x + 1) / 2, (network.decode_input(latents) + 1) / 2  # its pixels lie in [0, 1]
    total = (decoded - images).abs().mean()
    for draw in range(3):
        rows = slice(draw * B, (draw + 1) * B)
        t, z = draws.t[rows], latents.detach()
        z_t = as_column(t) * z + (1 - as_column(t)) * draws.e[rows]
        divisor = (1 - as_column(t)).clamp_min(0.05)
        prediction = norm(raw_denoiser(network, z_t, t, draws.y[rows]))
        total = total + ((z - z_t) / divisor - (prediction - z_t) / divisor).square().mean()
    found, ours = built.gradients()
    assert found.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert_same(ours, gradients(total, network))


def test_the_diffusion_loss_trains_the_common_layernorm_and_nothing_else_of_the_encoder(variants):
    built = Built(variants["after_unite"], draws_per_image=3)
    found = losses(built.network, None, built.x, built.draws, built.trial)
    reached = gradients(found.terms["diffusion"], built.network).keys()
    encoder = {n for n, p in built.network.named_parameters() if any(p is q for q in built.network.encoder_parameters())}  # fmt: skip
    assert reached & encoder == {"normaliser.norm.weight", "normaliser.norm.bias"}


def test_unites_times_are_shifted_as_in_its_code_and_its_balance_is_six_to_one(variants):
    fields = variants["after_unite"]
    drawn = [draw_times(time, 1000, generator(0, "t")).double() for time in (Time(distribution="logit_normal"), fields.time)]  # fmt: skip
    assert torch.allclose(drawn[1], 0.5 * drawn[0] / (1 + (0.5 - 1) * drawn[0]), atol=1e-6)
    objective = fields.objective
    assert objective.diffusion_weight / objective.reconstruction_weight == 6 and fields.optimiser.clip == 3.0


# -- REPA-E ------------------------------------------------------------------------------------------


def test_repa_es_gradients_are_those_of_its_two_backward_passes(variants):
    """Pass 1 trains the autoencoder with the denoiser held, pass 2 denoiser and projector on detached latents."""
    built = Built(variants["after_repa_e_alignment"])
    network, draws, target = built.network, built.draws, built.target
    norm, t = network.normaliser.norm, as_column(built.draws.t)
    with torch.no_grad():
        norm.running_mean += torch.linspace(-1, 1, C)
        norm.running_var *= torch.linspace(0.5, 3, C)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    head = built.auxiliaries.losses["alignment"].heads[0]
    of_target: list[torch.Tensor] = []
    target.encode_raw(built.x, hidden_states=of_target)

    def alignment(network, head, z, y):
        tokens: list[torch.Tensor] = []
        out = network.denoise(t * z + (1 - t) * draws.e, draws.t, y, tokens)
        predicted, features = head(tokens[0]), of_target[-1].detach()
        units = [v / v.norm(dim=-1, keepdim=True) for v in (predicted, features)]
        return out, -(units[0] * units[1]).sum(-1).mean()

    raw = network.encode_raw(built.x)
    held, held_head = copy.deepcopy(network).requires_grad_(False), copy.deepcopy(head).requires_grad_(False)
    running = (raw - mean) / (variance + 1e-4).sqrt()
    _, first = alignment(held, held_head, running, draws.labels)
    autoencoder = (network.decode_input(raw) - built.x).abs().mean() + 1.5 * first

    flat = raw.detach().flatten(0, 1)
    z = (raw.detach() - flat.mean(0)) / (flat.var(0, correction=0) + 1e-4).sqrt()
    out, second = alignment(network, head, z, draws.y)
    denoiser = (out - (z - draws.e)).square().mean() + 0.5 * second  # its t = 1 is noise: both signs of v flip

    expected = gradients(autoencoder + denoiser, network, built.auxiliaries)
    found, ours = built.gradients()
    assert_same(ours, expected)
    assert found.terms["alignment"].item() == pytest.approx(second.item(), rel=1e-12)
    assert torch.allclose(norm.running_mean, 0.9 * mean + 0.1 * flat.mean(0))
    assert torch.allclose(norm.running_var, 0.9 * variance + 0.1 * flat.var(0))
    assert "heads.denoise.out.weight" in ours and "patch_in.weight" in ours


def test_repa_es_alignment_can_change_the_latents_scale_which_batch_statistics_would_forbid(variants):
    built = Built(variants["after_repa_e_alignment"])
    found = losses(built.network, built.target, built.x, built.draws, built.trial, built.auxiliaries)
    raw = built.network.encode_raw(built.x)
    out = built.network.heads["encode"].out.bias  # the mean of every latent, which batch statistics take away
    assert float(torch.autograd.grad(found.terms["alignment"], out)[0].norm()) > 1e-4
    built.network.normaliser.train()
    through = torch.autograd.grad(built.network.normaliser(raw).pow(3).sum(), out)[0]
    assert float(through.norm()) < 1e-9


def test_the_decoder_reads_what_the_encoder_gave_in_training_and_from_latents_alike(variants):
    network = Built(variants["after_repa_e_diffusion"]).network
    x = torch.rand(B, 1, 8, 8, dtype=torch.float64)
    for _ in range(3):
        network.encode(x)
    network.eval()
    assert torch.allclose(network.decode(network.encode(x)), network.decode_input(network.encode_raw(x)), atol=1e-12)


# -- LDM-is-AE ---------------------------------------------------------------------------------------


def test_ldm_is_aes_velocity_loss_on_latents_of_unit_mean_square(variants):
    built = Built(variants["after_ldm_is_ae"])
    network, draws, t = built.network, built.draws, as_column(built.draws.t)
    raw = network.encode_raw(built.x)
    z = (raw / (raw.square().mean((1, 2), keepdim=True) + 1e-6).sqrt()).detach()
    z_t, divisor = t * z + (1 - t) * draws.e, (1 - t).clamp_min(0.05)
    prediction = raw_denoiser(network, z_t, draws.t, draws.y)
    velocity = ((z - z_t) / divisor - (prediction - z_t) / divisor).square().mean()
    found, ours = built.gradients()
    assert found.terms["diffusion"].item() == pytest.approx(velocity.item(), rel=1e-12)
    reconstruction = (network.decode(network.encode(built.x)) - built.x).square().mean()
    assert_same(ours, gradients(reconstruction + 10 * velocity, network))


def test_ldm_is_aes_times_are_a_logistic_of_a_normal(variants):
    t = draw_times(variants["after_ldm_is_ae"].time, 200_000, generator(0, "t")).double()
    logits = (t / (1 - t)).log()
    assert float(logits.mean()) == pytest.approx(-0.8, abs=0.01) and float(logits.std()) == pytest.approx(0.8, abs=0.01)


# -- Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_a_variant_that_bears_a_peers_name_says_after_and_what_differs(path):
    for name, variant in load_sweep(path).spec.variants.items():
        if re.search(rf"(^|_)({'|'.join(PEERS)})(_|$)", name):
            assert name.startswith("after_"), name
            why = variant["why"]
            assert "As there" in why or "no such arm" in why
            assert "Not as there" in why and re.search("arXiv [0-9]{4}[.][0-9]{5}", why)


# -- The general parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [None, 0.5])
@pytest.mark.parametrize("name", ["layernorm", "layernorm_affine", "image_rmsnorm", "batchnorm"])
def test_eps_is_added_before_the_root(name, eps):
    raw = torch.randn(5, 3, 4, dtype=torch.float64) * 0.1 + 1
    added = eps or (1e-5 if name == "batchnorm" else 1e-6)
    if name == "image_rmsnorm":
        expected = raw / (raw.square().mean((1, 2), keepdim=True) + added).sqrt()
    else:
        over = (0, 1) if name == "batchnorm" else (2,)
        centred = raw - raw.mean(over, keepdim=True)
        expected = centred / (centred.square().mean(over, keepdim=True) + added).sqrt()
    found = NORMALISERS[name](4, Latent(normaliser=name, eps=eps)).double()(raw)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_running_statistics_and_their_inverse_move_no_statistic():
    norm = NORMALISERS["batchnorm"](4, Latent(normaliser="batchnorm", eps=0.25)).double()
    raw = torch.randn(5, 3, 4, dtype=torch.float64)
    norm(raw * 3 + 1)
    before = norm.norm.running_mean.clone(), norm.norm.running_var.clone()
    settled = norm.settled(raw)
    assert torch.allclose(norm.undone(settled), raw, atol=1e-14)
    assert torch.equal(before[0], norm.norm.running_mean) and torch.equal(before[1], norm.norm.running_var)
    assert torch.allclose(norm.eval()(raw), settled, atol=1e-14)
    assert math.isclose((settled[0, 0, 0] * (before[1][0] + 0.25).sqrt() + before[0][0]).item(), float(raw[0, 0, 0]))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"latent": {"normaliser": "none", "eps": 1e-5}}, "eps: 1e-05 needs the normaliser layernorm"),
        ({"latent": {"normaliser": "batchnorm", "normalise_prediction": True}}, "normalise_prediction: True needs"),
        ({"latent": {"decoded": "raw"}}, "decoded: raw needs the normaliser batchnorm, not layernorm"),
        (
            {"latent": {"normalise_prediction": True}, "objective": {"output": "velocity"}},
            "objective.output is velocity",
        ),
        ({"auxiliary": {"alignment_encoder": 1.5}}, "alignment_encoder: needs an alignment above 0"),
        ({"auxiliary": {"alignment_encoder": 1.5, "alignment": 0.5}}, "alignment_from: denoise"),
        (
            {"latent": {"normaliser": "batchnorm", "decoded": "raw"}, "objective": {"balance": "gradient_norm"}},
            "objective.balance: the reconstruction has no gradient at the latents",
        ),
        (
            {
                "latent": {"normaliser": "layernorm_affine", "normalise_prediction": True},
                "training": {"phases": [{"start": 2, "frozen": ["denoise"]}]},
            },
            "freeze both or neither",
        ),
    ],
)
def test_a_field_that_would_do_nothing_is_refused(tiny_trial, sections, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        tiny_trial(**sections)
