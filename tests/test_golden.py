"""Losses of every objective are those that were written down, and a change of them is told with its step."""

import json

import golden
import pytest

from dsd_lab.core.data import load_data
from dsd_lab.specs.trial import Trial


@pytest.fixture(scope="module")
def digits():
    return load_data(Trial().data)


@pytest.mark.parametrize("precision", golden.TOLERANCE)
@pytest.mark.parametrize("objective", golden.OBJECTIVES)
def test_losses_are_the_golden_ones(objective, precision, digits):
    assert golden.compare([(objective, precision)], digits) == []


def test_every_file_is_of_a_run_and_every_run_has_terms_that_differ():
    names = {f"{objective}-{precision}" for objective in golden.OBJECTIVES for precision in golden.TOLERANCE}
    files = {path.stem: json.loads(path.read_text()) for path in golden.FOLDER.glob("*.json")}
    assert set(files) == names
    for content in files.values():
        assert len(content["steps"]) == golden.BASE["training"]["steps"]
        assert all({"loss", "reconstruction", "diffusion", "gradient_norm"} <= step.keys() for step in content["steps"])
    assert len({json.dumps(content["steps"]) for content in files.values()}) == len(files)
    assert {"alignment", "representation", "classification"} <= files["auxiliaries-fp32"]["steps"][0].keys()


def test_a_run_is_equal_to_itself_bit_for_bit(digits):
    first, second = (golden.steps_of(golden.trial_of("auxiliaries", "bf16"), digits) for _ in range(2))
    assert golden.difference(first, second, 0) is None


@pytest.mark.parametrize("precision", golden.TOLERANCE)
def test_another_weight_is_told_at_the_first_step(precision, digits):
    now = golden.steps_of(golden.trial_of("dsd", precision, {"objective": {"diffusion_weight": 1.1}}), digits)
    found = golden.difference(golden_steps("dsd", precision), now, golden.TOLERANCE[precision])
    assert found is not None and found.startswith("step 1: loss is ") and "relative difference" in found
    assert repr(now[0]["loss"]) in found and repr(golden_steps("dsd", precision)[0]["loss"]) in found


def test_a_weight_that_changes_on_the_way_is_told_at_its_step(digits):
    phases = [{"start": 5, "objective": {"diffusion_weight": 1.01}}]
    now = golden.steps_of(golden.trial_of("dsd", "fp32", {"training": {"phases": phases}}), digits)
    found = golden.difference(golden_steps("dsd", "fp32"), now, golden.TOLERANCE["fp32"])
    assert found is not None and found.startswith("step 6: loss is ")


def test_terms_and_steps_that_are_missing_and_numbers_that_are_none_differ():
    one = [{"loss": 1.0}]
    assert golden.difference(one, one, 0) is None
    assert golden.difference(one, [{"loss": 1.0, "extra": 1.0}], 1e-4) == "step 1: extra is only in the run"
    assert golden.difference(one, [{}], 1e-4) == "step 1: loss is only in the file"
    assert golden.difference(one, [], 1e-4) == "0 steps, golden 1"
    assert "step 1: loss is nan" in str(golden.difference(one, [{"loss": float("nan")}], 1e-4))
    assert golden.difference(one, [{"loss": 1.00001}], 1e-4) is None
    assert "relative difference 1.00e-05" in str(golden.difference(one, [{"loss": 1.00001}], 0))


def test_the_command_says_equal_or_what_differs(capsys, tmp_path, monkeypatch):
    assert golden.main(["compare", "--only", "dsd"]) == 0
    assert capsys.readouterr().out == "equal\n"
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.main(["write", "--only", "dsd"]) == 0 and len(list(tmp_path.glob("*.json"))) == 2
    path = golden.path_of("dsd", "fp32")
    content = json.loads(path.read_text())
    content["steps"][2]["loss"] *= 1.01
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert golden.main(["compare", "--exact", "--only", "dsd"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("dsd fp32: step 3: loss is ") and len(told.splitlines()) == 1


def golden_steps(objective, precision):
    return json.loads(golden.path_of(objective, precision).read_text())["steps"]
