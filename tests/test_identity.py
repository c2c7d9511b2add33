"""A trial's identity: it changes with everything that can change a training result, and with nothing else.

The pinned ids are a promise: a home folder of an older version is continued, not trained anew. They may
change only together with SCHEMA_VERSION.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from sweeping import write_spec

from dsd_lab.errors import BadInput
from dsd_lab.specs import identity
from dsd_lab.specs.identity import TRAINING_SECTIONS, canonical_fields, evaluation_id, trial_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import SCHEMA_VERSION, Generation, Objective, Section, Trial

COLLAPSE = Path(__file__).resolve().parents[1] / "experiments" / "collapse_ablation.yaml"
PINNED = {
    "control": "59c2435a51a3",
    "naive": "f561657a68ea",
    "decoupled": "61c031541db1",
    "clean_joint": "7bae9a19e0d0",
    "dsd_online": "26eacced5807",
    "dsd": "c4fe27c003ee",
    "detached": "48098e6ab083",
}
CONTROL = {"diffusion_weight": 0.0}


def identify(seed=0, **sections):
    return trial_id(Trial.model_validate(sections), seed)


def test_ids_are_the_ones_of_this_schema_version():
    assert SCHEMA_VERSION == 2
    assert {t.variant: t.id for t in load_sweep(COLLAPSE, "quick").trials if t.seed == 0} == PINNED
    assert identify() == "2e2d6f88ec24"
    assert evaluation_id(Generation()) == "225037fa"


def test_a_field_that_a_later_version_adds_with_a_default_changes_no_id(monkeypatch):
    class LaterObjective(Objective):
        novelty: float = Field(0.0, ge=0)

    class LaterTrial(Trial):
        objective: LaterObjective = LaterObjective()

    assert trial_id(LaterTrial(), 0) == identify()
    assert trial_id(LaterTrial(objective=LaterObjective(novelty=1.0)), 0) != identify()


@pytest.mark.parametrize(
    "sections",
    [
        {"probe": {"every": 7, "images": 9}},
        {"observation": {"log_every": 1, "checkpoint_every": 3}},
        {"resources": {"cpus": 2.0, "threads": 2}},
        {"network": {"size": "nano8", "width": 64}},
        {"objective": {"target_decay": 0.99}},
        {"optimiser": {"lr": 0.001}},
        {"time": {"distribution": "uniform", "mean": 3.0}},
        {"labels": {}},
        {"data": {"name": "digits"}},
    ],
)
def test_what_cannot_change_a_training_result_is_not_in_the_id(sections):
    assert identify(**sections) == identify()


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": {"target": "live"}},
        {"objective": {"noised": "detached"}},
        {"objective": {"target_decay": 0.98}},
        {"objective": {"diffusion_weight": 0.5}},
        {"latent": {"normaliser": "none"}},
        {"latent": {"decoder_noise": 0.1}},
        {"time": {"distribution": "logit_normal"}},
        {"labels": {"drop": 0.2}},
        {"optimiser": {"lr": 0.002}},
        {"training": {"steps": 1001}},
        {"training": {"precision": "bf16"}},
        {"network": {"layout": "coupled"}},
        {"network": {"width": 128}},
        {"data": {"revision": "2"}},
        {"data": {"holdout": 0.3}},
    ],
)
def test_what_can_change_a_training_result_is_in_the_id(sections):
    assert identify(**sections) != identify()


def test_seeds_are_in_the_id():
    assert len({identify(seed) for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("section", "unused", "context"),
    [
        ("objective", {"target_decay": 0.5}, {"objective": {"target": "live"}}),
        ("objective", {"target": "live", "output": "velocity", "clamp": 0.2}, {"objective": CONTROL}),
        ("time", {"distribution": "logit_normal"}, {"objective": CONTROL}),
        ("labels", {"drop": 0.5}, {"objective": CONTROL}),
        ("objective", {"weighting": "velocity"}, {"objective": {"loss_space": "velocity"}}),
        ("objective", {"clamp": 0.5}, {"objective": {"loss_space": "clean"}}),
        ("network", {"encode_blocks": 7}, {"network": {"layout": "coupled"}}),
        ("network", {"shared_blocks": 7}, {"network": {"layout": "modular"}}),
        ("optimiser", {"tail": 0.9}, {"optimiser": {"schedule": "cosine"}}),
        ("latent", {"decoder_noise": 1.0}, {"objective": {"reconstruction_weight": 0.0}}),
        ("objective", {"reconstruction": "l1"}, {"objective": {"reconstruction_weight": 0.0}}),
    ],
)
def test_a_field_without_effect_makes_no_second_trial_of_the_same_computation(section, unused, context):
    plain = identify(**context)
    assert identify(**{**context, section: context.get(section, {}) | unused}) == plain


def test_the_folder_is_not_in_the_id_but_its_declared_name_is(tmp_path):
    def first(path, **data):
        spec = write_spec(tmp_path / path, base={"data": {"source": "idx", "path": path, **data}})
        return load_sweep(spec).trials[0].id

    assert first("a/images") == first("b/images") != first("b/others")
    assert first("a/images", name="mine") == first("b/others", name="mine")


@given(st.dictionaries(st.sampled_from(["lr", "beta1", "beta2", "clip"]), st.floats(0.01, 0.9)))
def test_ids_differ_exactly_where_canonical_fields_differ(changes):
    trial, plain = Trial.model_validate({"optimiser": changes}), Trial()
    assert (trial_id(trial, 0) == trial_id(plain, 0)) == (canonical_fields(trial) == canonical_fields(plain))


@pytest.mark.parametrize("more", [{"steps": 26}, {"guidance": 1.5}, {"sampler": "euler"}, {"images": 100}, {"weights": "trained"}])  # fmt: skip
def test_evaluations_are_told_apart_by_every_setting_and_change_no_trial(more):
    assert evaluation_id(Generation(**more)) != evaluation_id(Generation())
    assert evaluation_id(Generation(steps=25)) == evaluation_id(Generation())


@pytest.mark.parametrize(
    ("unused", "context"),
    [
        ({"rtol": 1e-3, "atol": 1e-3}, {}),
        ({"steps": 99}, {"sampler": "dopri5"}),
        ({"guidance_interval": [0.1, 0.9]}, {}),
        ({"labels": "random"}, {}),
    ],
)
def test_settings_without_effect_make_no_second_evaluation(unused, context):
    assert evaluation_id(Generation(**unused, **context)) == evaluation_id(Generation(**context))


@pytest.mark.parametrize(
    ("used", "context"),
    [
        ({"rtol": 1e-3}, {"sampler": "dopri5"}),
        ({"atol": 1e-3}, {"sampler": "dopri5"}),
        ({"guidance_interval": [0.1, 0.9]}, {"guidance": 2.0}),
        ({"labels": "random"}, {"images": 100}),
    ],
)
def test_the_same_settings_make_one_where_they_have_an_effect(used, context):
    assert evaluation_id(Generation(**used, **context)) != evaluation_id(Generation(**context))


def test_every_section_is_either_in_the_id_or_known_to_change_nothing():
    outside = {"probe", "observation", "resources"}
    assert set(Trial.model_fields) == {*TRAINING_SECTIONS, *outside}
    assert all(issubclass(f.annotation, Section) for f in Trial.model_fields.values())
    assert set(canonical_fields(Trial())) == set(identity.TRAINING_SECTIONS)


INVENTED = {
    ("objective", "output"): ("objective", {"loss_space": "velocity"}, "clamp", 0.2),
    ("objective", "loss_space"): ("objective", {"output": "velocity", "weighting": "none"}, "clamp", 0.2),
    ("objective", "weighting"): ("objective", {"output": "velocity"}, "clamp", 0.2),
    ("objective", "target"): ("objective", {}, "target_decay", 0.5),
    ("latent", "normaliser"): ("latent", {}, "noise", 0.7),
    ("optimiser", "schedule"): ("optimiser", {}, "tail", 0.9),
    ("optimiser", "kind"): ("optimiser", {}, "momentum", 0.5),
    ("time", "distribution"): ("time", {}, "mean", 0.5),
    ("network", "layout"): ("network", {}, "encode_blocks", 7),
}


@pytest.mark.parametrize("place", INVENTED, ids=".".join)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_beside_a_value_that_identities_do_not_know_every_field_counts(place):
    section, beside, name, value = INVENTED[place]

    def of(**more):
        values = getattr(Trial(), section).model_copy(update=beside | {place[1]: "invented"} | more)
        return trial_id(Trial().model_copy(update={section: values}), 0, recorded={})

    assert of(**{name: value}) != of() != identify()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_sampler_that_identities_do_not_know_has_no_id():
    invented = Generation().model_copy(update={"sampler": "invented"})
    with pytest.raises(BadInput, match="sampler 'invented' is of a plug-in that is not loaded"):
        evaluation_id(invented)


def test_the_ends_of_a_guidance_interval_count_where_there_is_one():
    interval = {"guidance": 2.0, "guidance_interval": [0.2, 0.8]}
    assert len({evaluation_id(Generation(**interval, guidance_ends=ends)) for ends in ("closed", "open")}) == 2
    assert evaluation_id(Generation(guidance_ends="open")) == evaluation_id(Generation())
