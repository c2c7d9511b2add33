"""Parts of a batch, several draws an image, optimisers, learning rates by role, and averages of weights."""

import pytest
import torch
from test_trainer import assert_equal, state

from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.checkpoints import flatten_optimiser, load_checkpoint
from dsd_lab.core.training.ema import average_name
from dsd_lab.core.training.optimiser import build_optimiser
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput
from dsd_lab.evaluation.sampling import load_network
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_shape
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Trial

CPU = torch.device("cpu")
OBJECTIVES = {
    "naive": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "weighted": {"objective": {"target": "stop_gradient", "weighting": "velocity"}},
    "dsd": {"objective": {"target": "ema"}, "latent": {"decoder_noise": 0.1}},
    "kl": {"latent": {"normaliser": "kl"}, "objective": {"target": "stop_gradient"}},
    "control": {"objective": {"diffusion_weight": 0.0}},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("noise_draws", [1, 3])
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole_batch(tiny_trial, digits, kind, noise_draws):
    sections = OBJECTIVES[kind]
    trainers = [
        Trainer(tiny_trial(**sections, training={"grad_accum_steps": n, "noise_draws": noise_draws}), 0, digits, CPU)
        for n in (1, 4)
    ]
    found = [trainer.gradients(*trainer.draw(0)) for trainer in trainers]
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert float(found[1][name]) == pytest.approx(float(found[0][name]), rel=1e-5)
    for ours, theirs in zip(*(t.network.parameters() for t in trainers), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_parts_of_a_batch_take_the_random_numbers_of_their_images():
    numbers = torch.arange(12.0)  # 3 draws of 4 images: draw j of image i is row 4 j + i
    draws = Draws(numbers, numbers[:, None, None], numbers.long(), torch.arange(4.0)[:, None, None])
    part = draws.of_images(slice(2, 4), 4)
    assert part.t.tolist() == [2, 3, 6, 7, 10, 11] and part.decoder_e.flatten().tolist() == [2, 3]
    assert part.latent_e is None


def test_the_diffusion_loss_of_several_draws_is_their_mean(tiny_trial, digits):
    trial = tiny_trial(objective={"target": "stop_gradient"}, training={"noise_draws": 3})
    trainer = Trainer(trial, 0, digits, CPU)
    x, draws = trainer.draw(0)
    size = len(x)
    assert len(draws.t) == 3 * size and len(set(draws.t.tolist())) == 3 * size
    whole = losses(trainer.network, None, x, draws, trial)
    apart = [
        losses(
            trainer.network, None, x, Draws(*(v[j * size : (j + 1) * size] for v in (draws.t, draws.e, draws.y))), trial
        )
        for j in range(3)
    ]
    assert float(whole.terms["diffusion"].detach()) == pytest.approx(
        sum(float(a.terms["diffusion"].detach()) for a in apart) / 3, rel=1e-5
    )
    assert float(whole.terms["reconstruction"].detach()) == pytest.approx(
        float(apart[0].terms["reconstruction"].detach()), rel=1e-6
    )


def test_muon_moves_the_matrices_of_attention_and_mlp_and_adamw_the_rest(tiny_trial, digits):
    trainer = Trainer(tiny_trial(optimiser={"kind": "muon", "schedule": "constant"}), 0, digits, CPU)
    adamw, muon = trainer.optimiser.parts
    moved = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {n for n, p in trainer.network.named_parameters() if id(p) in moved}
    assert names and all(n.startswith("blocks.") and n.endswith("weight") for n in names)
    assert not any("modulation" in n for n in names)
    everything = [id(p) for part in (adamw, muon) for group in part.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in trainer.network.parameters())
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    for _ in range(3):  # gates start at zero: the first gradients do not reach the matrices behind them
        assert trainer.train_step() is None
    assert {g["lr"] for g in trainer.optimiser.param_groups} == {trainer.trial.optimiser.lr}
    assert any(not torch.equal(before[n], p) for n, p in trainer.network.named_parameters() if n in names)


@pytest.mark.parametrize(
    "sections", [{"optimiser": {"kind": "muon"}}, {"training": {"extra_ema_decays": [0.5, 0.9]}}], ids=repr
)
def test_resuming_goes_on_bit_equal(tiny_trial, digits, tmp_path, sections):
    trial = tiny_trial(**sections)
    whole = Trainer(trial, 0, digits, CPU, tmp_path / "whole")
    list(whole.run())
    first = Trainer(trial, 0, digits, CPU, tmp_path / "cut")
    for _ in first.run():
        if (tmp_path / "cut" / "step-000000003").exists():
            break
    second = Trainer(trial, 0, digits, CPU, tmp_path / "cut")
    assert second.resume() and second.step == 3
    list(second.run())
    assert_equal(state(second), state(whole))
    for decay, average in whole.more_averages.items():
        assert_equal(average.state_dict(), second.more_averages[decay].state_dict())


def test_a_slow_encoder_has_its_own_learning_rate(tiny_trial, digits):
    trainer = Trainer(tiny_trial(optimiser={"encoder_lr_factor": 0.1, "schedule": "constant"}), 0, digits, CPU)
    trainer.train_step()
    rates = {id(p): g["lr"] for g in trainer.optimiser.param_groups for p in g["params"]}
    encoder = {id(p) for p in trainer.network.encoder_parameters()}
    assert all(rates[i] == pytest.approx(1e-4) for i in encoder) and len(encoder) > 5
    assert {r for i, r in rates.items() if i not in encoder} == {1e-3}


def test_several_averages_are_kept_and_named_by_their_decay(tiny_trial, digits, tmp_path):
    trial = tiny_trial(training={"extra_ema_decays": [0.5]})
    trainer = Trainer(trial, 0, digits, CPU, tmp_path)
    list(trainer.run())
    tensors, _ = load_checkpoint(tmp_path / "step-000000006")
    name = average_name(0.5, trial.training.weight_ema)
    assert name == "average@0.5" and average_name(0.99, 0.99) == "average"
    key = "heads.decode.out.weight"
    alone = Trainer(tiny_trial(training={"weight_ema": 0.5}), 0, digits, CPU, tmp_path / "alone")
    list(alone.run())
    assert torch.equal(tensors[f"{name}.{key}"], alone.average.state_dict()[key])


def test_three_networks_are_the_modular_one_but_for_the_role_vectors(tiny_trial, digits):
    modular, separate = (
        Trainer(tiny_trial(network={"layout": layout}, optimiser={"clip": 1e6}), 0, digits, CPU)
        for layout in ("modular", "separate")
    )
    shared = modular.network.state_dict()
    own = {
        f"own_conditions.{r}.role.weight": shared["condition.role.weight"][i : i + 1]
        for i, r in ((0, "encode"), (2, "decode"))
    }
    separate.network.load_state_dict(shared | own)
    x, draws = modular.draw(0)
    ours, theirs = (losses(t.network, t.network, x, draws, t.trial) for t in (modular, separate))
    assert torch.equal(ours.total, theirs.total)


def test_the_optimiser_of_a_default_trial_is_one_adamw_with_two_groups(tiny_trial, digits):
    trainer = Trainer(tiny_trial(), 0, digits, CPU)
    optimiser = build_optimiser(trainer.network, Trial().optimiser)
    assert [type(p).__name__ for p in optimiser.parts] == ["AdamW"] and len(optimiser.param_groups) == 2


def test_an_evaluation_loads_the_average_of_the_decay_that_it_names(tiny_trial, digits, tmp_path):
    trial = tiny_trial(training={"extra_ema_decays": [0.5]})
    trainer = Trainer(trial, 0, digits, CPU, tmp_path)
    list(trainer.run())
    expected = {
        "ema": trainer.average,
        "ema:0.99": trainer.average,
        "ema:0.5": trainer.more_averages[0.5],
        "ema:.50": trainer.more_averages[0.5],
        "trained": trainer.network,
    }
    for weights, module in expected.items():
        found = load_network(trial, tmp_path, digits, CPU, weights)
        assert_equal(found.state_dict(), module.state_dict())


EVALUATED = """name: x
base: {training: {extra_ema_decays: [0.9, 0.999]}}
variants:
  a: {}
  b: {training: {weight_ema: 0.995}}
evaluate:
  - {weights: %s}
"""


@pytest.mark.parametrize("weights", ["ema", "trained", "ema:0.9", "ema:.999"])
def test_a_spec_may_evaluate_the_averages_that_every_trial_keeps(tmp_path, weights):
    (tmp_path / "x.yaml").write_text(EVALUATED % weights)
    assert load_sweep(tmp_path / "x.yaml").spec.evaluate[0].weights == weights


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ("ema:0.99", ("'b s0' keeps no average of decay 0.99", "0.995, 0.9, 0.999", "training.extra_ema_decays")),
        ("ema:0.8", ("'a s0' keeps no average of decay 0.8",)),
        ("emma", ("'emma' is not valid", "'ema' or 'trained'", "ema:0.999")),
        ("ema:1", ("a decay below 1",)),
    ],
)
def test_an_average_that_a_trial_does_not_keep_is_refused(tmp_path, weights, parts):
    (tmp_path / "x.yaml").write_text(EVALUATED % weights)
    with pytest.raises(BadInput) as caught:
        load_sweep(tmp_path / "x.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}:7: evaluate.0.weights: ")
    assert all(part in str(caught.value) for part in parts)


def test_muons_one_moment_a_matrix_is_counted(tiny_trial):
    shapes = {k: Shape(**count_shape(tiny_trial(optimiser={"kind": k}), 1, 10)) for k in ("adamw", "muon")}
    total = shapes["adamw"].params["total"]
    assert shapes["adamw"].moments == 2 * total > shapes["muon"].moments > total
    training = tiny_trial().training
    assert shapes["muon"].memory(training, 4) < shapes["adamw"].memory(training, 4)


def test_the_moments_that_are_counted_are_those_that_are_kept(tiny_trial, digits):
    for kind in ("adamw", "muon"):
        trial = tiny_trial(optimiser={"kind": kind})
        trainer = Trainer(trial, 0, digits, CPU)
        trainer.train_step()
        kept = sum(v.numel() for k, v in flatten_optimiser(trainer.optimiser).items() if not k.endswith(".step"))
        assert kept == count_shape(trial, 1, 10)["moments"]
