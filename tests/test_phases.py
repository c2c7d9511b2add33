"""Stages of training: staged baselines, interventions, frozen roles, and what stays equal to a plain trial."""

import pytest
import torch
from pydantic import ValidationError
from test_trainer import assert_equal, state

from dsd_lab.core.trainer import Trainer
from dsd_lab.counting import count_shape
from dsd_lab.specs.fields import Trial
from dsd_lab.specs.identity import trial_id

CPU = torch.device("cpu")
NAIVE = {"target": "live", "output": "velocity", "loss_space": "velocity"}
LATENT_MODEL = {
    "start": 3,
    "objective": {
        "diffusion_weight": 1.0,
        "reconstruction_weight": 0.0,
        "noised": "detached",
        "target": "stop_gradient",
    },
    "frozen": ["encode", "decode"],
}
STAGED = {"objective": {"diffusion_weight": 0.0}, "training": {"phases": [LATENT_MODEL], "batch_size": 8, "steps": 6}}


def phased(tiny_trial, *phases, objective=NAIVE, **sections):
    training = {"phases": list(phases), "batch_size": 8, "steps": 6}
    return tiny_trial(objective=objective, training=training, **sections)


def test_an_intervention_is_bit_for_bit_the_plain_trial_until_its_step_and_another_after_it(tiny_trial, digits):
    plain = Trainer(tiny_trial(objective=NAIVE), 0, digits, CPU)
    forked = Trainer(phased(tiny_trial, {"start": 3, "objective": {"target": "stop_gradient"}}), 0, digits, CPU)
    for trainer in (plain, forked):
        for _ in trainer.run():
            if trainer.step == 3:
                break
    assert_equal(state(plain), state(forked))
    for trainer in (plain, forked):
        list(trainer.run())
    ours, theirs = state(forked), state(plain)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", ["modular", "separate"])
def test_frozen_roles_do_not_move_by_one_bit_and_the_others_do(tiny_trial, digits, layout):
    trial = tiny_trial(**STAGED, network={"layout": layout}, optimiser={"weight_decay": 0.1})
    trainer = Trainer(trial, 0, digits, CPU)
    run, before = trainer.run(), {}
    for _ in run:
        if trainer.step == 3:
            before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
            break
    list(run)
    x = digits.holdout.at(torch.arange(5), CPU)[0]
    after = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    z, pictures = trainer.network.encode(x), trainer.network.decode(trainer.network.encode(x))
    trainer.network.load_state_dict(before)
    assert torch.equal(z, trainer.network.encode(x)) and torch.equal(pictures, trainer.network.decode(z))
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert any(k.startswith("heads.denoise") for k in moved)
    assert not any(k.startswith(("heads.encode", "heads.decode", "patch_in", "latent_in")) for k in moved)
    assert trainer.trial.has_denoiser and trainer.trial.sampled_objective.output == "clean"


def test_a_frozen_batchnorm_keeps_its_running_statistics(tiny_trial, digits):
    trainer = Trainer(tiny_trial(**STAGED, latent={"normaliser": "batchnorm"}), 0, digits, CPU)
    run, before = trainer.run(), None
    for _ in run:
        if trainer.step == 3:
            before = trainer.network.normaliser.norm.running_var.clone()
            break
    list(run)
    assert torch.equal(before, trainer.network.normaliser.norm.running_var)


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_trial_resumes_bit_equal_on_either_side_of_a_phase(tiny_trial, digits, tmp_path, stop):
    trial = tiny_trial(**STAGED, observation={"checkpoint_every": 1})
    whole = Trainer(trial, 0, digits, CPU, tmp_path / "whole")
    list(whole.run())
    first = Trainer(trial, 0, digits, CPU, tmp_path / "cut")
    for _ in first.run():
        if first.step == stop and (tmp_path / "cut" / f"step-{stop:09d}").exists():
            break
    second = Trainer(trial, 0, digits, CPU, tmp_path / "cut")
    assert second.resume() and second.step == stop
    list(second.run())
    assert_equal(state(second), state(whole))


def test_phases_lie_on_those_before_and_may_start_at_a_share_of_the_steps():
    trial = Trial.model_validate(
        {
            "objective": NAIVE,
            "training": {
                "steps": 10,
                "phases": [
                    {"start": 0.5, "objective": {"output": "clean"}},
                    {"start": 8, "objective": {"target": "ema"}},
                ],
            },
        }
    )
    stages = trial.stages()
    assert [s.start for s in stages] == [0, 5, 8]
    assert [(s.trial.objective.output, s.trial.objective.target) for s in stages] == [
        ("velocity", "live"),
        ("clean", "live"),
        ("clean", "ema"),
    ]
    assert trial.needs_target_encoder


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"steps": 5, "phases": [{"start": 5}]}}, "5 is neither a step before 5"),
        ({"training": {"steps": 5, "phases": [{"start": 1.5}]}}, "1.5 is neither a step"),
        ({"training": {"phases": [{"start": 5}, {"start": 5}]}}, "step 5 is not after step 5"),
        (
            {
                "training": {
                    "phases": [{"start": 5, "objective": {"diffusion_weight": 0.0, "reconstruction_weight": 0.0}}]
                }
            },
            "both loss weights are 0",
        ),
        ({"training": {"phases": [{"start": 5, "objective": {"targt": "ema"}}]}}, "targt"),
        (
            {"network": {"layout": "coupled"}, "training": {"phases": [{"start": 5, "frozen": ["encode"]}]}},
            "all roles share their blocks",
        ),
        ({"network": {"layout": "coupled"}, "optimiser": {"encoder_lr_factor": 0.1}}, "no blocks of its own"),
        ({"training": {"accumulate": 3}}, "3 does not divide batch_size 64"),
        ({"training": {"accumulate": 2}, "latent": {"normaliser": "batchnorm"}}, "taken over a whole batch"),
        ({"training": {"accumulate": 2}, "latent": {"entropy_weight": 0.1}}, "taken over a whole batch"),
    ],
)
def test_what_does_not_fit_is_refused(sections, message):
    with pytest.raises(ValidationError, match=message):
        Trial.model_validate(sections)


def test_the_id_knows_what_a_phase_does_and_not_how_it_is_written():
    def named(**training):
        return trial_id(Trial.model_validate({"objective": NAIVE, "training": {"steps": 10, **training}}), 0)

    plain = named()
    assert named(phases=[]) == plain
    assert named(phases=[{"start": 0.5, "objective": {"target": "ema"}}]) == named(
        phases=[{"start": 5, "objective": {"target": "ema"}}]
    )
    assert named(phases=[{"start": 5, "objective": {"target": "ema"}}]) != plain
    assert named(phases=[{"start": 5, "frozen": ["decode"]}]) != plain


def test_a_frozen_phase_costs_fewer_flops_than_a_joint_one(tiny_trial):
    joint = count_shape(tiny_trial(), 1, 10)["flops_per_image"]
    staged = tiny_trial(**STAGED)
    parts = [
        count_shape(s.trial.model_copy(update={"training": staged.training.model_copy(update={"phases": []})}), 1, 10)
        for s in staged.stages()
    ]
    found = count_shape(staged, 1, 10)
    assert found["flops_per_image"] < joint
    # the second half computes nothing backwards through the encoder and no decoder at all
    assert found["flops_per_image"] < sum(p["flops_per_image"] for p in parts) / 2 + 1
