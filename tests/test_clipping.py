"""Clipping: what shares no weight is clipped apart, so a detached diffusion loss changes no bit of encoder and decoder."""

import pytest
import torch

from dsd_lab.core.model.blocks import ROLES
from dsd_lab.core.training.clipping import Part, clip_gradients, clipped_parts
from dsd_lab.core.training.events import Logged
from dsd_lab.core.training.trainer import Trainer

CPU = torch.device("cpu")
LAYOUTS = {
    "modular": ["encode", "denoise", "decode"],
    "separate": ["encode", "denoise", "decode"],
    "coupled": ["network"],
}


def weight(*gradient):
    parameter = torch.nn.Parameter(torch.zeros(len(gradient)))
    parameter.grad = torch.tensor(gradient)
    return parameter


def norms(parts):
    return {part.name: float(torch.cat([g.flatten() for g in part.gradients()]).norm()) for part in parts}


def test_each_part_is_clipped_to_the_limit_and_the_norm_is_that_of_all_before():
    large, small, still = weight(3.0, 0.0), weight(0.0, 0.4), torch.nn.Parameter(torch.zeros(2))
    parts = [Part("a", [large]), Part("b", [small]), Part("c", [still])]
    norm, clipped = clip_gradients(parts, 1.0)
    assert float(norm) == pytest.approx((9 + 0.16) ** 0.5)
    assert {name: float(share) for name, share in clipped.items()} == {"a": 1, "b": 0, "c": 0}
    assert large.grad.tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    assert small.grad.tolist() == torch.tensor([0.0, 0.4]).tolist() and still.grad is None


def test_rows_of_a_common_table_are_clipped_with_their_parts():
    table = torch.nn.Parameter(torch.zeros(2, 2))
    table.grad = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    clip_gradients([Part("a", [], [(table, 0)]), Part("b", [weight(0.0)], [(table, 1)])], 1.0)
    assert table.grad[0].tolist() == torch.tensor([0.3, 0.4]).tolist()
    assert table.grad[1].tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_belongs_to_one_part(tiny_trial, digits, layout):
    auxiliary = {"alignment": 0.5, "representation": 0.2, "classification": 0.1, "head_width": 8}
    trial = tiny_trial(network={"layout": layout}, auxiliary=auxiliary, optimiser={"clip": 0.01})
    trainer = Trainer(trial, 0, digits, CPU)
    parts = clipped_parts(trainer.network, trainer.auxiliaries)
    assert [part.name for part in parts] == [*LAYOUTS[layout], "alignment", "representation", "classification"]
    table = trainer.network.condition.role.weight
    owned = [id(p) for part in parts for p in part.weights] + [id(table)]
    assert sorted(owned) == sorted(id(p) for p in trainer.trained.parameters())
    assert sorted(row for part in parts for _, row in part.rows) == [0, 1, 2]
    assert all(owner is table for part in parts for owner, _ in part.rows)
    trainer.train_step()
    assert all(norm <= 0.01 * (1 + 1e-4) for norm in norms(parts).values())
    assert norms(parts)["classification"] == pytest.approx(0.01, rel=1e-3)


def of_role(trainer, role):
    """Weights and averages that a role reads, and its row of the table."""
    row = ROLES.index(role)
    return [
        tensor.detach().clone()
        for network in (trainer.network, trainer.average)
        for tensor in (*network.role_parameters(role), network.condition.role.weight[row])
    ]


CASES = {
    "modular": {},
    "separate": {"network": {"layout": "separate"}},
    "muon with weight decay": {"optimiser": {"kind": "muon", "weight_decay": 0.1}},
    "bf16 in parts": {"training": {"precision": "bf16", "grad_accum_steps": 2}},
    "batchnorm": {"latent": {"normaliser": "batchnorm"}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_diffusion_loss_of_a_detached_objective_changes_no_bit_of_encoder_and_decoder(tiny_trial, digits, case):
    def trained(**objective):
        objective = {"target": "stop_gradient", "noised": "detached"} | objective
        sections = {name: dict(values) for name, values in CASES[case].items()}
        sections["optimiser"] = sections.get("optimiser", {}) | {"clip": 0.05}
        sections["training"] = sections.get("training", {}) | {"steps": 30}
        trial = tiny_trial(**sections, objective=objective, observation={"log_every": 30}, probe={"every": 30})
        trainer = Trainer(trial, 0, digits, CPU)
        logged = [event.metrics for event in trainer.run() if isinstance(event, Logged)]
        return trainer, logged[-1]

    control, records = trained(diffusion_weight=0.0)
    assert records["train/clipped/encode"] > 0.5 and records["train/clipped/denoise"] == 0
    clipped, denoisers = [], []
    for weight in (0.01, 1.0, 100.0):
        detached, records = trained(diffusion_weight=weight)
        clipped.append(records["train/clipped/denoise"])
        for role in ("encode", "decode"):
            theirs = of_role(detached, role)
            assert all(torch.equal(a, b) for a, b in zip(of_role(control, role), theirs, strict=True)), (role, weight)
        assert all(
            torch.equal(a, b)
            for a, b in zip(control.network.normaliser.buffers(), detached.network.normaliser.buffers(), strict=True)
        )
        denoisers.append(of_role(detached, "denoise"))
    assert clipped[0] < 1 and clipped[2] == 1
    assert any(not torch.equal(a, b) for a, b in zip(denoisers[0], denoisers[2], strict=True))
