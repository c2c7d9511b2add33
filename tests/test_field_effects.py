"""A trial's id: fields without effect change nothing, every other field changes it, new defaults change no old id."""

import pytest

from dsd_lab.specs.identity import trial_id
from dsd_lab.specs.trial import Trial

CONTROL = {"objective": {"diffusion_weight": 0.0}}


def named(*layers):
    sections = {}
    for layer in layers:
        for section, fields in layer.items():
            sections[section] = sections.get(section, {}) | fields
    return trial_id(Trial.model_validate(sections), 0)


FROZEN = {
    "2e2d6f88ec24": {},
    "50a51f1c1f39": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "65bcc3dec3e8": CONTROL,
    "5e360e0b1a0d": {
        "latent": {"normaliser": "batchnorm", "decoder_noise": 0.1},
        "time": {"distribution": "logit_normal", "std": 2.0},
    },
    "0f6b0aca8742": {
        "network": {"layout": "coupled", "size": "tiny64"},
        "labels": {"drop": 0.0},
        "optimiser": {"schedule": "cosine"},
        "training": {"precision": "bf16"},
    },
}
"""Ids as schema version 1 first gave them: one that changes would train again what a user has trained."""

FILES = {"data": {"source": "parquet", "path": "/somewhere/set"}}
USED = [
    ({}, {"data": {"size": 16}}),
    ({}, {"data": {"crop": "centre"}}),
    (FILES, {"data": {"damaged": "skip"}}),
    (FILES, {"data": {"image_column": "img"}}),
    (FILES, {"data": {"label_column": "fine"}}),
    ({"data": {"source": "datasets", "hub": "a/b"}}, {"data": {"hub": "a/c"}}),
    ({}, {"objective": {"target_warmup": 10}}),
    ({}, {"time": {"shift": 3.0}}),
    ({"latent": {"normaliser": "fixed_noise"}}, {"latent": {"noise": 0.2}}),
    ({"latent": {"normaliser": "kl"}}, {"latent": {"kl_weight": 0.2}}),
    ({"latent": {"normaliser": "kl"}} | CONTROL, {"latent": {"kl_weight": 0.2}}),
    ({}, {"latent": {"eps": 1e-4}}),
    ({}, {"latent": {"normalise_prediction": True}}),
    ({"latent": {"normaliser": "batchnorm"}}, {"latent": {"decoded": "raw"}}),
    ({}, {"latent": {"entropy_weight": 0.1}}),
    ({"latent": {"entropy_weight": 0.1}}, {"latent": {"entropy_floor": 0.1}}),
    ({}, {"augmentation": {"flip": 0.5}}),
    ({}, {"augmentation": {"crop": 2}}),
    (CONTROL, {"augmentation": {"mask": 0.25}}),
]
USED += [
    ({"auxiliary": used}, {"auxiliary": change})
    for used, change in (
        ({}, {"alignment": 0.5}),
        ({}, {"representation": 0.5}),
        ({}, {"classification": 0.5}),
        ({"alignment": 0.5}, {"alignment_from": "denoise"}),
        ({"alignment": 0.5}, {"alignment_layers": [0]}),
        ({"alignment": 0.5}, {"alignment_target_layers": [0]}),
        ({"alignment": 0.5}, {"alignment_to": "vgg11", "alignment_weights": "random"}),
        (
            {"alignment": 0.5, "alignment_to": "vgg11", "alignment_weights": "random"},
            {"alignment_weights": "pretrained"},
        ),
        ({"alignment": 0.5, "alignment_from": "denoise"}, {"alignment_noised": "detached"}),
        (
            {"alignment": 0.5, "alignment_from": "denoise", "alignment_noised": "detached"},
            {"alignment_encoder": 1.5},
        ),
        ({"classification": 0.5}, {"classification_from": "encode"}),
        ({"alignment": 0.5}, {"head_width": 32}),
        ({"representation": 0.5}, {"head_width": 32}),
    )
]
USED += [
    (CONTROL | {"auxiliary": {"representation": 0.5}}, {"objective": {"target_decay": 0.9}}),
    ({"objective": {"target": "live"}, "auxiliary": {"alignment": 0.5}}, {"objective": {"target_warmup": 10}}),
]
_PERCEPTUAL = {"perceptual_weight": 0.5, "perceptual_backbone": "vgg11", "perceptual_weights": "random"}
_BALANCED = {"objective": {"balance": "gradient_norm"}}
_DETACHED = {"target": "stop_gradient", "noised": "detached"}
USED += [
    ({}, {"objective": _PERCEPTUAL}),
    ({"objective": _PERCEPTUAL}, {"objective": {"perceptual_backbone": "vgg13"}}),
    ({"objective": _PERCEPTUAL}, {"objective": {"perceptual_weights": "pretrained"}}),
    ({"objective": _PERCEPTUAL | {"reconstruction_weight": 0.0}}, {"latent": {"decoder_noise": 0.1}}),
    ({}, _BALANCED),
    (CONTROL | {"auxiliary": {"classification": 0.5}}, _BALANCED),
    ({"objective": _DETACHED | _PERCEPTUAL}, _BALANCED),
    ({"objective": _DETACHED, "auxiliary": {"alignment": 0.5, "alignment_from": "denoise"}}, _BALANCED),
]
UNUSED = [
    (FILES, {"data": {"path": "/elsewhere/set"}}),
    (FILES, {"data": {"memory": "stream"}}),
    (FILES, {"data": {"memory": "resident", "workers": 0}}),
    ({"data": {"source": "datasets", "hub": "a/b", "name": "b"}}, {"data": {"hub": "a/c"}}),
    ({"objective": {"target": "live"}}, {"objective": {"target_warmup": 10}}),
    (CONTROL, {"objective": {"target_warmup": 10}}),
    (CONTROL, {"time": {"shift": 3.0}}),
    ({"latent": {"normaliser": "kl"}}, {"latent": {"noise": 0.2}}),
    ({"latent": {"normaliser": "fixed_noise"}}, {"latent": {"kl_weight": 0.2}}),
    ({}, {"latent": {"noise": 0.2, "kl_weight": 0.2, "entropy_floor": 0.1}}),
    (CONTROL | {"auxiliary": {"classification": 0.5}}, {"objective": {"target_decay": 0.9}}),
]
UNUSED += [
    ({}, {"objective": {"perceptual_backbone": "vgg11", "perceptual_weights": "random"}}),
    ({"objective": {"reconstruction_weight": 0.0}}, _BALANCED),
    (CONTROL, _BALANCED),
    ({"objective": _DETACHED}, _BALANCED),
    ({"objective": _DETACHED, "auxiliary": {"alignment": 0.5, "representation": 0.5}}, _BALANCED),
]
_ALIGNED = ("alignment_from", "alignment_layers", "alignment_target_layers", "alignment_to", "alignment_weights")
_OTHER = {
    "alignment_from": "denoise",
    "alignment_layers": [0],
    "alignment_target_layers": [0],
    "alignment_to": "vgg11",
    "alignment_weights": "random",
    "alignment_noised": "detached",
    "classification_from": "encode",
    "head_width": 32,
}
UNUSED += [
    ({"auxiliary": used}, {"auxiliary": {name: _OTHER[name] for name in names}})
    for used, names in (
        ({}, _OTHER),
        ({"representation": 0.5}, (*_ALIGNED, "alignment_noised", "classification_from")),
        ({"classification": 0.5}, (*_ALIGNED, "alignment_noised", "head_width")),
        ({"alignment": 0.5}, ("alignment_weights", "alignment_noised", "classification_from")),
    )
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
