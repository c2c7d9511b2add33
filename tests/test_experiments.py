"""Every shipped spec resolves, and every one of its variants takes its first optimiser steps."""

from pathlib import Path

import pytest
import torch

from dsd_lab.core.data import load_data
from dsd_lab.core.trainer import Trainer
from dsd_lab.counting import count_shape
from dsd_lab.specs.fields import Data, Trial
from dsd_lab.specs.sweep import load_sweep

SPECS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "latent_channels": 4,
    "width": 16,
    "heads": 2,
    "encode_blocks": 1,
    "denoise_blocks": 1,
    "decode_blocks": 1,
    "shared_blocks": 1,
}


def small(fields: Trial) -> Trial:
    """The same method on digits, with narrow layers, small batches and three steps."""
    values = fields.model_dump(exclude_unset=False)
    values["data"] = {"source": "digits"}
    values["network"] |= SMALL
    values["training"] |= {"steps": 3, "batch_size": 8}
    values["optimiser"] |= {"warmup_steps": 0}
    values["resources"] |= {"gpus": 0.0}
    return Trial.model_validate(values)


def variants():
    """One trial a distinct variant and grid point of every spec and profile."""
    found = {}
    for path in SPECS:
        for profile in load_sweep(path).spec.profiles or [None]:
            for trial in load_sweep(path, profile).trials:
                name = f"{path.stem}:{trial.name.removesuffix(f' s{trial.seed}')}"
                found.setdefault(name, trial.fields)
    return found


VARIANTS = variants()


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_a_spec_says_why_and_has_a_quick_profile(path):
    plan = load_sweep(path)
    assert plan.spec.name == path.stem and plan.spec.why and plan.profile == "quick"
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=spec.schema.json"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_its_first_steps(name):
    trainer = Trainer(small(VARIANTS[name]), 0, load_data(Data()), torch.device("cpu"))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    for _ in range(3):
        assert trainer.train_step() is None
    assert trainer.step == 3
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    assert any(moved) and all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters())


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_one_network_three_ways_compares_at_equal_parameters_and_equal_training_flops(profile):
    plan = load_sweep(Path(__file__).parents[1] / "experiments" / "one_network_three_ways.yaml", profile)
    budgets = {}
    for trial in plan.trials:
        if trial.variant != "control" and trial.variant not in budgets:
            counted, training = count_shape(trial.fields, 1, 10), trial.fields.training
            flops = counted["flops_per_image"] * training.batch_size * training.steps
            budgets[trial.variant] = counted["params"]["total"], flops
    assert set(budgets) == {"modular", "separate", "coupled", "detached", "staged"}
    for place in range(2):
        values = [budget[place] for budget in budgets.values()]
        assert max(values) / min(values) < 1.02
