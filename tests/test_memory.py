"""What a step holds: counted before training, followed while it trains, and less of it where blocks are computed again."""

import pytest
import torch

from dsd_lab.bench.machine import tensor_bytes
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_bytes, count_shape

CPU = torch.device("cpu")
VELOCITY = {"output": "velocity", "loss_space": "velocity"}
CASES = {
    "dsd": {},
    "bf16": {"training": {"precision": "bf16"}},
    "naive": {"objective": {"target": "live"} | VELOCITY},
    "activation_checkpointing": {"training": {"activation_checkpointing": True}},
    "recompute_bf16": {"training": {"activation_checkpointing": True, "precision": "bf16"}},
    "parts": {"training": {"grad_accum_steps": 2}},
    "noise_draws": {"training": {"noise_draws": 2}},
    "auxiliary": {"auxiliary": {"classification": 0.1, "representation": 0.5}},
    "muon": {"optimiser": {"kind": "muon"}},
}
NETWORK = {"width": 64, "heads": 2, "encode_blocks": 2, "denoise_blocks": 2, "decode_blocks": 2}


def trial_of(tiny_trial, case, images=64):
    sections = {"network": NETWORK} | CASES[case]
    return tiny_trial(**sections | {"training": {"batch_size": images, "steps": 4} | sections.get("training", {})})


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_the_memory_that_is_planned_is_within_15_per_cent_of_what_a_step_holds(case, tiny_trial, digits):
    trial = trial_of(tiny_trial, case)
    planned = Shape(**count_shape(trial, 1, 10)).memory(trial.training, count_bytes(trial, 1, 10))
    trainer = Trainer(trial, 0, digits, CPU)
    trainer.train_step()  # makes the moments
    assert planned == pytest.approx(tensor_bytes(trainer), rel=0.15)


@pytest.mark.integration
@pytest.mark.parametrize("case", ["dsd", "bf16", "naive", "parts", "auxiliary"])
def test_blocks_that_are_computed_again_give_the_same_bits_in_less_memory(case, tiny_trial, digits):
    plain = trial_of(tiny_trial, case)
    again = plain.model_copy(update={"training": plain.training.model_copy(update={"activation_checkpointing": True})})
    first, second = (Trainer(trial, 0, digits, CPU) for trial in (plain, again))
    for _ in range(3):
        first.train_step()
        second.train_step()
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.average.parameters(), second.average.parameters(), strict=True))
    assert tensor_bytes(second) < 0.9 * tensor_bytes(first)
    assert count_shape(again, 1, 10)["flops_per_image"] > 1.1 * count_shape(plain, 1, 10)["flops_per_image"]
