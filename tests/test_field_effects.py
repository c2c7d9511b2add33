"""A trial's id: fields without effect change nothing, every other field changes it, new defaults change no old id."""

import pytest

from dsd_lab.specs.fields import Trial
from dsd_lab.specs.identity import trial_id

CONTROL = {"objective": {"diffusion_weight": 0.0}}


def named(*layers):
    sections = {}
    for layer in layers:
        for section, fields in layer.items():
            sections[section] = sections.get(section, {}) | fields
    return trial_id(Trial.model_validate(sections), 0)


FROZEN = {
    "64385c873c49": {},
    "8817bdb5a0cc": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "f4c75eca1a13": CONTROL,
    "f61856af7a43": {
        "latent": {"normaliser": "batchnorm", "decoder_noise": 0.1},
        "time": {"distribution": "logit_normal", "std": 2.0},
    },
    "eab02fdbc51c": {
        "network": {"layout": "coupled", "size": "tiny64"},
        "labels": {"drop": 0.0},
        "optimiser": {"schedule": "cosine"},
        "training": {"precision": "bf16"},
    },
}
"""Ids as schema version 1 first gave them: one that changes would train again what a user has trained."""

USED = [
    ({}, {"objective": {"target_warmup": 10}}),
    ({}, {"time": {"shift": 3.0}}),
    ({"latent": {"normaliser": "fixed_noise"}}, {"latent": {"noise": 0.2}}),
    ({"latent": {"normaliser": "kl"}}, {"latent": {"kl_weight": 0.2}}),
    ({"latent": {"normaliser": "kl"}} | CONTROL, {"latent": {"kl_weight": 0.2}}),
    ({}, {"latent": {"entropy_weight": 0.1}}),
    ({"latent": {"entropy_weight": 0.1}}, {"latent": {"entropy_floor": 0.1}}),
    ({}, {"augmentation": {"flip": 0.5}}),
    ({}, {"augmentation": {"crop": 2}}),
    (CONTROL, {"augmentation": {"mask": 0.25}}),
]
UNUSED = [
    ({"objective": {"target": "live"}}, {"objective": {"target_warmup": 10}}),
    (CONTROL, {"objective": {"target_warmup": 10}}),
    (CONTROL, {"time": {"shift": 3.0}}),
    ({"latent": {"normaliser": "kl"}}, {"latent": {"noise": 0.2}}),
    ({"latent": {"normaliser": "fixed_noise"}}, {"latent": {"kl_weight": 0.2}}),
    ({}, {"latent": {"noise": 0.2, "kl_weight": 0.2, "entropy_floor": 0.1}}),
]


@pytest.mark.parametrize(("base", "change"), USED, ids=repr)
def test_a_field_with_an_effect_changes_the_id(base, change):
    assert named(base, change) != named(base)


@pytest.mark.parametrize(("base", "change"), UNUSED, ids=repr)
def test_a_field_without_effect_does_not_change_the_id(base, change):
    assert named(base, change) == named(base)


@pytest.mark.parametrize("frozen", FROZEN)
def test_ids_of_the_first_version_stand(frozen):
    assert named(FROZEN[frozen]) == frozen
