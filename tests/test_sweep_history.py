"""A sweep's record: what is refused is not recorded."""

import contextlib

import pytest
from sweeping import VARIANTS, run, train_here, write_spec

from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK
from dsd_lab.home.home import Home
from dsd_lab.runs import ray_engine as engine
from dsd_lab.specs.loading import load_sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep of one finished trial."""
    folder = tmp_path_factory.mktemp("history")
    home, spec = Home(folder / "home"), write_spec(folder, {"dsd": VARIANTS["dsd"]})
    (trial,) = train_here(home, spec).trials
    return home, spec, trial.id


@pytest.fixture
def machine(monkeypatch):
    """Ray on a machine of two processors; nothing is started."""
    monkeypatch.setattr(engine, "_ray", lambda home, cluster: contextlib.nullcontext())
    monkeypatch.setattr(engine.ray, "nodes", lambda: [{"Resources": {"CPU": 2.0}, "Alive": True}])


def test_a_sweep_that_asks_for_more_than_there_is_leaves_its_record_as_it_was(trained, machine, capsys):
    home, spec, trial = trained
    path = home.sweep_folder("tiny") / "manifest.json"
    before = path.read_bytes()
    larger = ("--set", "base.network.width=32", "--set", "base.resources.cpus=3")
    assert run("sweep", spec, "--home", home.root, "--no-tracking", *larger)[0] == NO_RESOURCES
    assert "asks for 3, but there are 2" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run("status", "--home", home.root)[1]["sweeps"][0]["states"] == {"done": 1}
    code, answer = run("gc", "--yes", "--home", home.root)
    assert code == OK and not any(item["kind"] == "trial" for item in answer["items"])
    assert home.trial(trial).state() == "done"


def test_a_first_sweep_that_is_refused_leaves_no_record(machine, tmp_path):
    spec = write_spec(tmp_path, base={"resources": {"cpus": 3.0}})
    assert run("sweep", spec, "--home", tmp_path / "home")[0] == NO_RESOURCES
    assert Home(tmp_path / "home").manifests() == {}


def test_a_sweep_whose_trials_began_with_other_code_leaves_its_record_as_it_was(trained, machine, capsys):
    home, spec, _ = trained
    path = home.sweep_folder("tiny") / "manifest.json"
    before = path.read_bytes()
    (trial,) = load_sweep(spec, sets=["seeds=[1]"]).trials
    home.trial(trial.id).checkpoints.mkdir(parents=True)
    home.trial(trial.id).write_status(state="interrupted", code="another", step=4, steps=12)
    assert run("sweep", spec, "--home", home.root, "--no-tracking", "--set", "seeds=[1]")[0] == BAD_INPUT
    assert "other training code" in capsys.readouterr().err and path.read_bytes() == before
