"""Auxiliary losses: formulas, finite differences, where their gradients reach, and heads that are trained beside the network."""

import copy
import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cosine_similarity, cross_entropy

from dsd_lab.core.diffusion.auxiliary import AUXILIARIES, Auxiliaries
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.network import Network
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.specs.auxiliary import Auxiliary
from dsd_lab.specs.identity import trial_id
from dsd_lab.specs.trial import Trial

CPU = torch.device("cpu")
TIMM = {"alignment_to": "test_vit", "alignment_weights": "random"}
CASES = {
    "alignment": {"alignment": 0.5},
    "alignment of two layers": {
        "alignment": 0.5,
        "alignment_layers": [0, 1],
        "alignment_target_layers": [-1, 0],
    },
    "alignment of the denoiser": {"alignment": 0.5, "alignment_from": "denoise"},
    "alignment to timm": {"alignment": 0.5, **TIMM},
    "alignment of the denoiser to timm": {"alignment": 0.5, "alignment_from": "denoise", **TIMM},
    "alignment of a pass of its own": {"alignment": 0.5, "alignment_from": "denoise", "alignment_noised": "detached"},
    "representation": {"representation": 0.5},
    "classification of latents": {"classification": 0.5},
    "classification of features": {"classification": 0.5, "classification_from": "encode"},
    "all": {"alignment": 0.5, "representation": 0.3, "classification": 0.2},
}
TWO = {"encode_blocks": 2, "denoise_blocks": 2, "shared_blocks": 2}


class Built:
    """A network away from its start, a target encoder away from it, auxiliaries, images and draws."""

    def __init__(self, trial, digits, count=8):
        torch.manual_seed(0)
        self.trial, self.network = trial, Network(trial, 1, 10)
        with torch.no_grad():
            for part in [*self.network.blocks, *self.network.heads.values()]:
                part.modulation.weight.normal_(std=0.1)
                part.modulation.bias.normal_(std=0.1)
        self.target = copy.deepcopy(self.network)
        with torch.no_grad():
            for p in self.target.parameters():
                p.add_(0.02 * torch.randn_like(p))
        self.auxiliaries = Auxiliaries(trial, self.network, 10, CPU)
        self.x, y = digits.train.at(torch.arange(count), CPU)
        none = torch.full_like(y, 10)
        self.draws = Draws(torch.linspace(0.1, 0.9, count), torch.randn(count, 4, 8), none, labels=y)

    def losses(self):
        return losses(self.network, self.target, self.x, self.draws, self.trial, self.auxiliaries)

    def double(self):
        for part in (self.network, self.target, self.auxiliaries):
            part.double()
        for loss in self.auxiliaries.losses.values():
            if loss.backbone is not None:
                loss.backbone.model.double()
        self.x = self.x.double()
        self.draws = dataclasses.replace(self.draws, t=self.draws.t.double(), e=self.draws.e.double())
        return self


@pytest.fixture
def double(monkeypatch):
    """Losses cast to float32, which small differences would magnify."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def built(tiny_trial, digits, case=None, **sections):
    auxiliary = CASES[case] if isinstance(case, str) else case or {}
    network = TWO | sections.pop("network", {})
    return Built(tiny_trial(auxiliary=auxiliary, network=network, **sections), digits)


def reached(term, parameters):
    return [g is not None and float(g.norm()) > 0 for g in torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)]  # fmt: skip


# -- The formulas ------------------------------------------------------------------------------------


def passes(setup):
    """Tokens of the three passes, taken block by block."""
    network, target, draws = setup.network, setup.target, setup.draws
    encode, denoise, of_target = [], [], []
    z = network.normaliser(network.encode_raw(setup.x, hidden_states=encode))
    t = draws.t.reshape(-1, 1, 1)
    network.denoise(t * z + (1 - t) * draws.e, draws.t, draws.y, denoise)
    target.encode(setup.x, hidden_states=of_target)
    return z, encode, denoise, of_target


@pytest.mark.parametrize("layout", ["modular", "coupled"])
def test_a_pass_keeps_the_output_of_each_of_its_blocks_in_order(tiny_trial, digits, layout):
    setup = built(tiny_trial, digits, network={"layout": layout})
    network = setup.network
    _, encode, denoise, _ = passes(setup)
    for role, kept in (("encode", encode), ("denoise", denoise)):
        assert len(kept) == 2 and all(tokens.shape == (8, 4, 16) for tokens in kept)
        condition = network.condition(role, *((setup.draws.t, setup.draws.y) if role == "denoise" else (None, None)))
        assert torch.equal(network.blocks[network.ranges[role][1]](kept[0], condition), kept[1])
        assert torch.equal(network.heads["encode"](encode[1], network.condition("encode", None, None)), network.encode_raw(setup.x))  # fmt: skip


@pytest.mark.parametrize("case", ["alignment", "alignment of the denoiser", "alignment of two layers"])
def test_alignment_is_repas_loss_against_the_ema_copys_encoder(tiny_trial, digits, case):
    setup = built(tiny_trial, digits, case)
    _, encode, denoise, target = passes(setup)
    tokens = denoise if "denoiser" in case else encode
    pairs = [(tokens[0], target[1]), (tokens[1], target[0])] if "two" in case else [(tokens[1], target[1])]
    heads = setup.auxiliaries.losses["alignment"].heads
    expected = [cosine_similarity(head(a), b, dim=-1).mean() for head, (a, b) in zip(heads, pairs, strict=True)]
    found = setup.losses().terms["alignment"]
    assert found.item() == pytest.approx(-(sum(expected) / len(expected)).item(), rel=1e-5)
    assert -1 <= found.item() <= 1


def test_alignment_to_a_timm_model_is_repas_loss_against_its_features_on_the_grid_of_the_tokens(tiny_trial, digits):
    setup = built(tiny_trial, digits, "alignment to timm")
    loss = setup.auxiliaries.losses["alignment"]
    assert loss.backbone.pixels == 2 * 16  # two tokens a side, patches of 16
    (features,) = loss.backbone.features(setup.x)
    assert features.shape == (8, 64, 2, 2)
    _, encode, _, _ = passes(setup)
    projected = loss.heads[0](encode[-1])
    for row, column in ((0, 1), (1, 0)):
        cosine = cosine_similarity(projected[:, 2 * row + column], features[:, :, row, column], dim=-1)
        assert cosine.shape == (8,)
    expected = cosine_similarity(projected, features.flatten(2).transpose(1, 2), dim=-1).mean()
    assert setup.losses().terms["alignment"].item() == pytest.approx(-expected.item(), rel=1e-5)


def test_features_of_a_finer_or_coarser_grid_are_pooled_to_that_of_the_tokens(tiny_trial, digits):
    spec = {"alignment": 1.0, "alignment_to": "test_resnet", "alignment_weights": "random"}
    layers = {"alignment_layers": [0, 1], "alignment_target_layers": [0, -1]}
    setup = built(tiny_trial, digits, spec | layers)
    loss = setup.auxiliaries.losses["alignment"]
    fine, coarse = loss.backbone.features(setup.x)
    assert fine.shape[-1] > 2 == coarse.shape[-1]
    seen = [part.shape for part in loss._targets(type("Seen", (), {"x": setup.x, "network": setup.network}))]
    assert seen == [(8, 4, fine.shape[1]), (8, 4, coarse.shape[1])]
    assert torch.isfinite(setup.losses().total)


def test_representation_is_byols_loss_on_mean_tokens(tiny_trial, digits):
    setup = built(tiny_trial, digits, "representation")
    _, encode, _, target = passes(setup)
    predicted = setup.auxiliaries.losses["representation"].predictor(encode[-1].mean(1))
    a, b = (part / part.norm(dim=1, keepdim=True) for part in (predicted, target[-1].mean(1)))
    expected = (a - b).square().sum(1).mean()  # BYOL's form: the squared distance of unit vectors
    assert setup.losses().terms["representation"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("source", ["latents", "features"])
def test_classification_is_the_cross_entropy_of_the_labels_before_label_drop(tiny_trial, digits, source):
    setup = built(tiny_trial, digits, f"classification of {source}")
    z, encode, _, _ = passes(setup)
    head = setup.auxiliaries.losses["classification"].classifier
    pooled = (z if source == "latents" else encode[-1]).mean(1)
    assert bool((setup.draws.y == 10).all())  # every label was dropped
    expected = cross_entropy(pooled @ head.weight.T + head.bias, setup.draws.labels)
    assert setup.losses().terms["classification"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_trainer_hands_on_the_labels_before_it_drops_them(tiny_trial, digits):
    whole, dropped = (Trainer(tiny_trial(labels={"drop": rate}), 0, digits, CPU).draw(2)[1] for rate in (0.0, 1.0))
    assert torch.equal(dropped.labels, whole.y) and bool((dropped.y == 10).all())


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences_for_the_network_and_for_the_heads(tiny_trial, digits, double, case):
    setup = built(tiny_trial, digits, case, latent={"normaliser": "none"}).double()
    names = set(setup.auxiliaries.losses)
    heads = list(setup.auxiliaries.parameters())
    weights = [setup.network.patch_in.weight, setup.network.blocks[0].attention.qkv.weight, heads[0], heads[-1]]

    def value():
        terms = setup.losses().terms
        return sum(terms[name] for name in names)

    gradients = torch.autograd.grad(value(), weights, allow_unused=True)
    live = "own" not in case
    assert float(gradients[2].norm()) > 0 and (gradients[0] is not None) == live
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=torch.manual_seed(1), dtype=torch.float64)
        ends = []
        with torch.no_grad():
            start = weight.clone()
            for sign in (1, -1):
                weight.copy_(start + sign * 1e-6 * direction)
                ends.append(value())
            weight.copy_(start)
        numeric = float((ends[0] - ends[1]) / 2e-6)
        if gradient is None:
            assert not live  # a detached pass: the loss changes with the encoder, its gradient is cut
        else:
            assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-9)


# -- Where gradients reach ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_reaches_a_target_and_the_total_is_the_weighted_sum(tiny_trial, digits, case):
    setup = built(tiny_trial, digits, case)
    found = setup.losses()
    found.total.backward()
    assert all(p.grad is None for p in setup.target.parameters())
    spec = setup.trial.auxiliary
    expected = found.terms["reconstruction"] + found.terms["diffusion"]
    expected = expected + sum(getattr(spec, name) * found.terms[name] for name in setup.auxiliaries.losses)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(found.terms) == {"reconstruction", "diffusion", *setup.auxiliaries.losses}
    assert all(float(p.grad.norm()) > 0 for p in setup.auxiliaries.parameters() if p.dim() == 2)


@pytest.mark.parametrize("noised", ["live", "detached"])
@pytest.mark.parametrize("alignment_noised", ["live", "detached"])
def test_the_denoisers_alignment_reaches_the_encoder_where_it_says_so_whatever_the_diffusion_loss_does(
    tiny_trial, digits, noised, alignment_noised
):
    """Detached for the diffusion loss, live for the alignment: REPA-E's alignment arm."""
    spec = CASES["alignment of the denoiser to timm"] | {"alignment_noised": alignment_noised}
    setup = built(tiny_trial, digits, spec, objective={"noised": noised, "target": "stop_gradient"})
    found = setup.losses()
    encoder, denoiser = (setup.network.blocks[setup.network.ranges[role][0]].mlp.fc1.weight for role in ("encode", "denoise"))  # fmt: skip
    assert reached(found.terms["diffusion"], [encoder, denoiser]) == [noised == "live", True]
    assert reached(found.terms["alignment"], [encoder, denoiser]) == [alignment_noised == "live", True]


def test_a_pass_of_its_own_sees_what_the_shared_pass_sees(tiny_trial, digits):
    spec = CASES["alignment of the denoiser"]
    values = []
    for noised in ("live", "detached"):
        setup = built(tiny_trial, digits, spec, objective={"noised": noised, "target": "stop_gradient"})
        assert setup.auxiliaries.losses["alignment"].own_pass == (noised == "detached")
        values.append(setup.losses().terms["alignment"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_alignment_and_representation_of_the_encoder_leave_denoiser_and_decoder_alone(tiny_trial, digits):
    setup = built(tiny_trial, digits, "all")
    found, network = setup.losses(), setup.network
    weights = [network.blocks[network.ranges[role][0]].mlp.fc1.weight for role in ("encode", "denoise", "decode")]
    for name in AUXILIARIES:
        assert reached(found.terms[name], weights) == [True, False, False]


@pytest.mark.parametrize("target", ["ema", "stop_gradient"])
@pytest.mark.parametrize("case", ["alignment", "representation", "all"])
def test_the_target_encoder_makes_one_pass_however_many_losses_need_it(tiny_trial, digits, monkeypatch, target, case):
    setup = built(tiny_trial, digits, case, objective={"target": target})
    calls, real = [], setup.target.encode_raw
    monkeypatch.setattr(setup.target, "encode_raw", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    setup.losses()
    assert len(calls) == 1


def test_the_losses_compare_masked_tokens_with_those_of_the_whole_image(tiny_trial, digits):
    setup = built(tiny_trial, digits, "representation")
    whole = setup.losses().terms["representation"]
    hidden = torch.tensor([True, False, True, False]).expand(8, 4)
    setup.draws = dataclasses.replace(setup.draws, mask=hidden)
    encode, target = [], []
    setup.network.encode_raw(setup.x, hidden, encode)
    setup.target.encode_raw(setup.x, hidden_states=target)
    q = setup.auxiliaries.losses["representation"].predictor(encode[-1].mean(1))
    expected = 2 - 2 * cosine_similarity(q, target[-1].mean(1), dim=-1).mean()
    found = setup.losses().terms["representation"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and found.item() != whole.item()


# -- Beside the network ------------------------------------------------------------------------------


def test_every_loss_has_a_weight_of_its_name_that_is_off_by_default():
    assert all(getattr(Auxiliary(), name) == 0 for name in AUXILIARIES)


def test_without_weights_nothing_is_built_kept_or_trained(tiny_trial, digits):
    trainer = Trainer(tiny_trial(objective={"target": "live"}), 0, digits, CPU)
    assert list(trainer.auxiliaries.parameters()) == [] and trainer.target_encoder is None
    tokens = trainer.auxiliaries.tokens()
    assert tokens.encode is None and tokens.denoise is None and tokens.target is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("auxiliary", "needed"),
    [
        ({}, False),
        ({"alignment": 1.0}, True),
        ({"alignment": 1.0, **TIMM}, False),
        ({"representation": 1.0}, True),
        ({"classification": 1.0}, False),
    ],
)
def test_a_target_encoder_is_kept_exactly_where_something_reads_it(tiny_trial, digits, auxiliary, needed):
    for objective in ({"target": "live"}, {"diffusion_weight": 0.0}):
        trial = tiny_trial(auxiliary=auxiliary, objective=objective)
        assert trial.needs_target_encoder == needed
        assert (Trainer(trial, 0, digits, CPU).target_encoder is not None) == needed
        assert ("target" in count_shape(trial, 1, 10)["copies"]) == needed
    assert tiny_trial(auxiliary=auxiliary, objective={"target": "ema"}).needs_target_encoder


def test_heads_are_a_function_of_the_seed_and_of_nothing_else_and_change_no_weight_of_the_network(tiny_trial, digits):
    def weights(seed, **auxiliary):
        trainer = Trainer(tiny_trial(auxiliary=auxiliary), seed, digits, CPU)
        return trainer.network.state_dict(), trainer.auxiliaries.state_dict()

    plain, _ = weights(0)
    network, alone = weights(0, representation=1.0)
    _, together = weights(0, representation=1.0, alignment=1.0, classification=1.0)
    _, other = weights(1, representation=1.0)
    assert all(torch.equal(plain[name], network[name]) for name in plain)
    assert alone and alone.keys() < together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    assert not any(torch.equal(alone[name], other[name]) for name in alone)


def test_heads_are_trained_and_clipped_apart_and_frozen_models_are_not(tiny_trial, digits):
    trial = tiny_trial(auxiliary=CASES["all"] | TIMM, optimiser={"clip": 1e-3})
    trainer = Trainer(trial, 0, digits, CPU)
    before = copy.deepcopy(trainer.auxiliaries.state_dict())
    frozen = trainer.auxiliaries.losses["alignment"].backbone.model
    start = copy.deepcopy(frozen.state_dict())
    trainer.train_step()
    assert all(not torch.equal(before[k], v) for k, v in trainer.auxiliaries.state_dict().items())
    assert all(torch.equal(start[k], v) for k, v in frozen.state_dict().items())
    for loss in trainer.auxiliaries.losses.values():
        gradients = torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None])
        assert float(gradients.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert not any("backbone" in name for name in trainer.auxiliaries.state_dict())


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_heads_are_counted_beside_the_network_and_a_step_is_counted_without_weights(tiny_trial, digits, case):
    trial = tiny_trial(auxiliary=CASES[case], network=TWO)
    plain, shape = (Shape(**count_shape(t, 1, 10)) for t in (tiny_trial(network=TWO), trial))
    trainer = Trainer(trial, 0, digits, CPU)
    heads = sum(p.numel() for p in trainer.auxiliaries.parameters())
    assert shape.params == plain.params and plain.auxiliary == plain.frozen == 0
    assert shape.auxiliary == heads > 0
    assert shape.frozen == trainer.auxiliaries.frozen_parameters()
    assert (shape.frozen > 0) == ("timm" in case)
    assert shape.flops_per_image > plain.flops_per_image
    weights = shape.memory(trial.training, 0) - plain.memory(trial.training, 0)
    assert weights == 4 * (4 * heads + shape.frozen)
    assert count_bytes(trial, 1, 10) >= count_bytes(tiny_trial(network=TWO), 1, 10)


@pytest.mark.parametrize("case", CASES)
def test_training_resumes_to_the_same_bits(tiny_trial, digits, tmp_path, case):
    every = {"checkpoint_every": 2, "log_every": 3}
    sections = {"auxiliary": CASES[case], "network": TWO, "augmentation": {"mask": 0.3}, "observation": every}
    trial = tiny_trial(**sections, training={"steps": 4}, objective={"target": "stop_gradient"})
    whole = Trainer(trial, 0, digits, CPU, tmp_path)
    list(whole.run())
    max(tmp_path.glob("step-*")).rename(tmp_path / "left-out")
    again = Trainer(trial, 0, digits, CPU, tmp_path)
    assert again.resume() and again.step == 2
    list(again.run())
    for ours, theirs in ((again.trained, whole.trained), (again.target_encoder, whole.target_encoder)):
        if ours is not None:
            assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_training_lowers_each_loss(tiny_trial, digits):
    trial = tiny_trial(auxiliary=dict.fromkeys(AUXILIARIES, 1.0), training={"steps": 60, "batch_size": 32})
    trainer = Trainer(trial, 0, digits, CPU)
    x, draws = trainer.draw(0)

    def values():
        with torch.no_grad():
            found = losses(trainer.network, trainer.target_encoder, x, draws, trial, trainer.auxiliaries)
        return {name: float(found.terms[name]) for name in AUXILIARIES}

    before = values()
    for _ in range(60):
        trainer.train_step()
    after = values()
    assert all(after[name] < before[name] - 0.05 for name in AUXILIARIES)


def test_bf16_trains_with_all_losses(tiny_trial, digits):
    trial = tiny_trial(auxiliary=CASES["all"] | TIMM, training={"precision": "bf16"})
    trainer = Trainer(trial, 0, digits, CPU)
    assert trainer.train_step() is None
    assert all(p.dtype == torch.float32 for p in trainer.auxiliaries.parameters())


# -- The spec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"auxiliary": {"alignment": 1.0, "alignment_layers": [2]}}, r"auxiliary.alignment_layers: 2 is no block of encode, which has 2 \(-2 to 1\)"),
        ({"auxiliary": {"alignment": 1.0, "alignment_target_layers": [-3]}}, r"auxiliary.alignment_target_layers: -3"),
        ({"auxiliary": {"alignment": 1.0, "alignment_layers": [0, 1]}}, "1 layers for the 2 of alignment_layers"),
        ({"auxiliary": {"alignment": 1.0, "alignment_layers": []}}, "at least 1 item"),
        ({"auxiliary": {"alignment": 1.0, "alignment_to": "vgg11"}}, "auxiliary.alignment_weights: vgg11 needs a file"),
        ({"auxiliary": {"alignment": 1.0, "alignment_from": "denoise"}, "objective": {"diffusion_weight": 0.0}}, "auxiliary.alignment_from: the denoiser is not trained"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(sections, said):
    with pytest.raises(ValidationError, match=said):
        Trial.model_validate(sections)


def test_layers_are_those_of_the_layout():
    for layout, count in (("modular", 2), ("coupled", 3)):
        sections = {"network": {"layout": layout}, "auxiliary": {"alignment": 1.0, "alignment_layers": [count - 1]}}
        Trial.model_validate(sections)
        sections["auxiliary"]["alignment_layers"] = [count]
        with pytest.raises(ValidationError, match=f"which has {count}"):
            Trial.model_validate(sections)


def test_one_computation_has_one_id_however_its_layers_are_counted():
    def named(**auxiliary):
        return trial_id(Trial.model_validate({"auxiliary": {"alignment": 1.0, **auxiliary}}), 0)

    assert named() == named(alignment_layers=[1], alignment_target_layers=[1]) == named(alignment_layers=[-1])
    assert len({named(), named(alignment_layers=[0]), named(alignment_target_layers=[0])}) == 3


def test_weights_are_told_apart_by_their_files_name_wherever_it_lies():
    def named(weights):
        auxiliary = {"alignment": 1.0, "alignment_to": "test_vit", "alignment_weights": weights}
        return trial_id(Trial.model_validate({"auxiliary": auxiliary}), 0)

    assert named("/a/vit.pth") == named("/b/c/vit.pth") != named("/a/other.pth")
    assert len({named("vit.pth"), named("random"), named("pretrained")}) == 3


def test_an_unknown_model_stops_a_trainer_with_its_key(tiny_trial, digits):
    trial = tiny_trial(auxiliary={"alignment": 1.0, "alignment_to": "vgg111", "alignment_weights": "random"})
    with pytest.raises(BadInput, match=r"auxiliary\.alignment_to: no timm model 'vgg111'; did you mean 'vgg11"):
        Trainer(trial, 0, digits, CPU)
