"""The JSON Schema that editors complete and check specs with: it holds in every place where a spec can be wrong."""

import json
from pathlib import Path

import jsonschema
import pytest
from sweeping import VARIANTS, write_spec

from dsd_lab.cli.init import starter
from dsd_lab.cli.schema import spec_schema
from dsd_lab.specs import registry
from dsd_lab.specs.plugins import load_plugins
from dsd_lab.specs.trial import Trial
from dsd_lab.specs.yaml_document import read_document

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_parts" / "my_parts.py"
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
WHOLE = {
    "schema": 1,
    "name": "all",
    "base": {"training": {"steps": 100}, "data": {"source": "folder", "path": "photos"}},
    "variants": {
        "naive": {"why": "Nothing is stopped.", "objective": {"target": "live"}},
        "staged": {"training": {"phases": [{"start": 0.5, "frozen": ["encode"], "objective": {"target": "ema"}}]}},
    },
    "grid": {"optimiser.lr": [1e-3, 1e-4], "latent.normaliser": ["none", "layernorm"]},
    "evaluate": [{"sampler": "heun", "guidance": [1.0, 2.0], "weights": "ema:0.999", "metrics": ["fid", "psnr"]}],
    "profile": "quick",
    "profiles": {
        "quick": {
            "seeds": [0],
            "base": {"training": {"steps": 10}},
            "variants": {"naive": {"optimiser": {"lr": 1e-3}}},
            "grid": {"optimiser.lr": [1e-3]},
            "evaluate": [{"steps": 5}],
            "report": {"control": None},
        }
    },
}


SCHEMA = spec_schema()
"""Without plug-ins."""


def faults(spec, schema=SCHEMA):
    """Where the schema finds something wrong: the places of its errors, as an editor underlines them."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(spec)
    return {".".join(map(str, error.absolute_path)) for error in found}


def with_value(path, value):
    """The whole spec with one value set; lists are entered by their index."""
    spec = json.loads(json.dumps(WHOLE))
    here = spec
    for key in path[:-1]:
        here = here[key] if isinstance(here, list) else here.setdefault(key, {})
    here[path[-1]] = json.loads(json.dumps(value))
    return spec


@pytest.fixture(autouse=True)
def no_plugins_stay():
    yield
    for plugin in registry.plugins.values():
        for table in registry.tables():
            table.forget(plugin)
    registry.plugins.clear()


def test_the_schema_is_one_and_without_marks_of_ours():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert "x-part" not in json.dumps(SCHEMA)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_spec_has_no_fault(path):
    assert faults(read_document(path).values) == set()


def test_a_spec_that_holds_every_section_and_the_starter_and_the_tests_own_have_no_fault(tmp_path):
    assert faults(WHOLE) == set()
    (tmp_path / "first.yaml").write_text(starter(Path("first.yaml")))
    assert faults(read_document(tmp_path / "first.yaml").values) == set()
    assert faults(read_document(write_spec(tmp_path, VARIANTS)).values) == set()


@pytest.mark.parametrize(
    "place",
    [("base",), ("variants", "naive"), ("profiles", "quick", "base"), ("profiles", "quick", "variants", "naive")],
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("objective", "target"), "liv"),
        (("objective", "options"), {"huber": {"delta": 1}}),
        (("training", "steps"), 0),
        (("training", "steps"), "many"),
        (("latent", "normaliser"), "layernrom"),
        (("auxiliary", "extra", "mean_pixel"), 1.0),
        (("network", "size"), "nano"),
    ],
)
def test_a_wrong_value_is_found_where_a_trial_has_its_fields(place, path, value):
    wrong = faults(with_value((*place, *path), value))
    assert wrong and all(
        ".".join((*place, *path)).startswith(where) and where.startswith(".".join(place)) for where in wrong
    )


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("base", "trainning"), {}, "base"),
        (("base", "training", "stpes"), 5, "base.training"),
        (("variants", "naive", "objectve"), {}, "variants.naive"),
        (("variants", "naive", "objective", "targt"), "live", "variants.naive.objective"),
        (("variants", "naive", "why"), 3, "variants.naive.why"),
        (("variants", "Naive One"), {}, "variants"),
        (
            ("variants", "staged", "training", "phases", 0, "frozen"),
            ["encoder"],
            "variants.staged.training.phases.0.frozen.0",
        ),
        (("grid", "optimiser.rl"), [1e-3], "grid"),
        (("grid", "optimiser.lr"), 1e-3, "grid.optimiser.lr"),
        (("grid", "optimiser.lr"), [], "grid.optimiser.lr"),
        (("grid", "optimiser.lr"), ["fast"], "grid.optimiser.lr.0"),
        (("grid", "latent.normaliser"), ["none", "layernrom"], "grid.latent.normaliser.1"),
        (("evaluate", 0, "sampler"), "huen", "evaluate.0.sampler"),
        (("evaluate", 0, "stepss"), 5, "evaluate.0"),
        (("evaluate", 0, "guidance"), [], "evaluate.0.guidance"),
        (("evaluate", 0, "metrics"), ["fdi"], "evaluate.0.metrics"),
        (("profiles", "quick", "bsae"), {}, "profiles.quick"),
        (("profiles", "quick", "seeds"), [], "profiles.quick.seeds"),
        (("profiles", "quick", "grid", "optimiser.rl"), [1], "profiles.quick.grid"),
        (("profiles", "quick", "evaluate", 0, "sampler"), "huen", "profiles.quick.evaluate.0.sampler"),
        (("profiles", "quick", "report", "contrl"), "a", "profiles.quick.report"),
        (("profiles", "quick", "profiles"), {}, "profiles.quick"),
        (("report", "contrl"), "a", "report"),
        (("bsae",), {}, ""),
    ],
)
def test_an_unknown_key_or_a_wrong_value_is_found_in_its_place(path, value, where):
    assert faults(with_value(path, value)) == {where}


def offered(path):
    """The keys or values that an editor offers at a place of a spec without plug-ins."""
    here = {**SCHEMA, "properties": SCHEMA["properties"] | SCHEMA["else"]["properties"]}
    for key in path:
        inside = here["items"] if isinstance(key, int) else here.get("properties", {}).get(key)
        here = here["additionalProperties"] if inside is None else inside
        here = SCHEMA["$defs"][here["$ref"].rpartition("/")[2]] if "$ref" in here else here
    return set(here.get("enum", here.get("properties", ())))


def test_sections_fields_and_choices_are_offered_in_every_place():
    targets = {"live", "stop_gradient", "ema"}
    for place in (("base",), ("variants", "a"), ("profiles", "p", "base"), ("profiles", "p", "variants", "a")):
        assert offered(place) - {"why", "steps_factor"} == set(Trial.model_fields)
        assert offered((*place, "objective", "target")) == targets
    for place in ((), ("profiles", "p")):
        assert {"optimiser.lr", "objective.target", "latent.normaliser"} <= offered((*place, "grid"))
        assert offered((*place, "grid", "objective.target", 0)) == targets
        assert "heun" in offered((*place, "evaluate", 0, "sampler"))


OWN = {
    "latent": {"normaliser": "squash"},
    "objective": {"reconstruction": "huber", "options": {"huber": {"delta": 0.5}}},
}


def test_parts_of_a_plugin_are_refused_taken_where_it_is_required_and_checked_where_it_is_loaded():
    own = with_value(("variants", "own"), OWN)
    assert faults(own) == {
        "variants.own.latent.normaliser",
        "variants.own.objective.reconstruction",
        "variants.own.objective.options",
    }
    required = own | {"requires": ["my_parts"]}
    assert faults(required) == set()
    required["variants"]["own"]["latent"]["normalizer"] = "squash"  # all that names no part is checked as ever
    assert faults(required) == {"variants.own.latent"}

    load_plugins([str(EXAMPLE)])
    loaded = spec_schema()
    own = with_value(("variants", "own"), OWN) | {"requires": ["my_parts"]}
    assert faults(own, loaded) == set()
    own["variants"]["own"]["objective"] = {"reconstruction": "hubert", "options": {"huber": {"dleta": 0.5}}}
    assert faults(own, loaded) == {"variants.own.objective.reconstruction", "variants.own.objective.options.huber"}
