"""Stages of training: staged baselines, interventions, frozen roles, and what stays equal to a plain trial."""

import pytest
import torch
from pydantic import ValidationError
from test_trainer import assert_equal, differ, state

from dsd_lab.core.model.blocks import ROLES
from dsd_lab.core.training.events import Checkpointed, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.specs.identity import trial_id
from dsd_lab.specs.trial import Trial

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
        ({"training": {"grad_accum_steps": 3}}, "3 does not divide batch_size 64"),
        ({"training": {"grad_accum_steps": 2}, "latent": {"normaliser": "batchnorm"}}, "taken over a whole batch"),
        ({"training": {"grad_accum_steps": 2}, "latent": {"entropy_weight": 0.1}}, "taken over a whole batch"),
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


def moments(trainer):
    """The optimiser's state by the name of the weight."""
    named = trainer.network.named_parameters()
    return {f"{n}/{k}": v.clone() for n, p in named for k, v in trainer.optimiser.state_of(p).items()}


@pytest.mark.parametrize("fix", [{"target": "stop_gradient"}, {"output": "clean", "loss_space": "clean"}], ids=str)
def test_an_intervention_goes_on_as_a_checkpoint_of_the_plain_trial_under_the_other_objective(
    tiny_trial, digits, tmp_path, fix
):
    every = {"checkpoint_every": 3}
    for event in Trainer(tiny_trial(objective=NAIVE, observation=every), 0, digits, CPU, tmp_path).run():
        if isinstance(event, Checkpointed):
            break
    fork = Trainer(tiny_trial(objective=NAIVE | fix), 0, digits, CPU, tmp_path)
    assert fork.resume() and fork.step == 3
    list(fork.run())
    switched = Trainer(phased(tiny_trial, {"start": 3, "objective": fix}), 0, digits, CPU)
    list(switched.run())
    assert_equal(state(switched), state(fork))
    assert_equal(moments(switched), moments(fork))


@pytest.mark.parametrize("layout", ["modular", "separate"])
@pytest.mark.parametrize("roles", [["encode"], ["decode"], ["denoise"], ["encode", "decode"], ["encode", "denoise"]])
def test_a_frozen_roles_weights_and_moments_stay_and_the_others_go_on(tiny_trial, digits, layout, roles):
    trial = tiny_trial(
        network={"layout": layout},
        latent={"normaliser": "layernorm_affine"},
        optimiser={"weight_decay": 0.1, "schedule": "constant"},
        training={"phases": [{"start": 3, "frozen": roles}]},
        probe={"every": 1},
    )
    trainer, found = Trainer(trial, 0, digits, CPU), {}
    for event in trainer.run():
        if isinstance(event, Probed):
            weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
            found[event.step] = (weights, moments(trainer), set(event.metrics))
    (before, moments_before, _), (after, moments_after, _) = found[3], found[6]
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    for role in ROLES:
        own = [names[id(p)] for p in trainer.network.role_parameters(role)]
        moved = [not torch.equal(before[n], after[n]) for n in own]
        assert not any(moved) if role in roles else sum(moved) > len(own) / 2
        frozen = [k for k in moments_before if role in roles and k.split("/")[0] in own]
        assert all(torch.equal(moments_before[k], moments_after[k]) for k in frozen)
    if layout == "modular":
        rows, table = [ROLES.index(role) for role in roles], "condition.role.weight"
        pairs = [(before[table], after[table])]
        pairs += [(moments_before[f"{table}/{m}"], moments_after[f"{table}/{m}"]) for m in ("exp_avg", "exp_avg_sq")]
        for old, new in pairs:
            assert torch.equal(old[rows], new[rows]) and not torch.equal(old, new)
    interferes = {step: any(n.startswith("interference") for n in metrics) for step, (_, _, metrics) in found.items()}
    assert interferes[2] and interferes[5] == ("encode" not in roles)


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_phase_with_frozen_rows_resumes_bit_equal_from_within(tiny_trial, digits, tmp_path, stop):
    phases = [{"start": 2, "frozen": ["encode"]}, {"start": 5}]
    trial = phased(tiny_trial, *phases, observation={"checkpoint_every": 1})
    whole = Trainer(trial, 0, digits, CPU)
    list(whole.run())
    for event in Trainer(trial, 0, digits, CPU, tmp_path).run():
        if isinstance(event, Checkpointed) and event.step == stop:
            break
    again = Trainer(trial, 0, digits, CPU, tmp_path)
    assert again.resume() and again.step == stop
    list(again.run())
    assert_equal(state(again), state(whole))
    assert_equal(moments(again), moments(whole))


@pytest.mark.parametrize("layout", ["modular", "separate"])
def test_nothing_is_computed_back_through_a_frozen_encoder_whatever_the_objective_asks_for(tiny_trial, layout):
    def cost(*roles, **objective):
        phases = [{"start": 0, "objective": objective, "frozen": list(roles)}]
        trial = tiny_trial(network={"layout": layout}, training={"phases": phases})
        return count_shape(trial, 1, 10)["flops_per_image"], count_bytes(trial, 1, 10)

    for role in ROLES:
        assert cost(role, **NAIVE)[0] < cost(**NAIVE)[0]
    cut = {"target": "stop_gradient", "noised": "detached", "output": "velocity", "loss_space": "velocity"}
    assert cost("encode", **NAIVE) == cost("encode", **cut)


@pytest.mark.parametrize(
    ("frozen", "objective"),
    [(["encode", "denoise", "decode"], {}), (["encode", "decode"], {"diffusion_weight": 0.0})],
)
def test_a_phase_that_would_train_nothing_is_refused(frozen, objective):
    phases = [{"start": 5, "frozen": frozen, "objective": objective}]
    with pytest.raises(ValidationError, match=r"training\.phases\.0\.frozen: no loss of this phase"):
        Trial.model_validate({"training": {"phases": phases}})


def test_phases_without_effect_are_not_in_the_id_and_the_decay_before_a_target_is_used_is():
    def named(*phases, **objective):
        training = {"steps": 10, "phases": list(phases)}
        return trial_id(Trial.model_validate({"objective": NAIVE | objective, "training": training}), 0)

    ema = {"target": "ema"}
    assert named() == named({"start": 5}) == named({"start": 5, "objective": {"target": "live"}})
    assert named({"start": 0, "objective": ema}) == named(target="ema")
    assert named({"start": 5, "objective": ema}, {"start": 7}) == named({"start": 5, "objective": ema})
    assert len({named(), *(named({"start": s, "frozen": [r]}) for s in (0, 5) for r in ROLES)}) == 7
    later = {"start": 5, "objective": {"target": "ema", "target_decay": 0.9}}
    assert named(later, target_decay=0.5) != named(later, target_decay=0.8)
    assert named(target_decay=0.5) == named(target_decay=0.8)


def test_the_result_depends_on_the_decay_of_a_target_before_it_is_used(tiny_trial, digits):
    """Why that decay is in the id."""
    later = {"start": 3, "objective": {"target": "ema", "target_decay": 0.9}}
    trainers = [
        Trainer(phased(tiny_trial, later, objective=NAIVE | {"target_decay": d}), 0, digits, CPU) for d in (0.5, 0.8)
    ]
    for trainer in trainers:
        list(trainer.run())
    assert differ(*(state(trainer) for trainer in trainers))
