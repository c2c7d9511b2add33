"""Image sets through the command line: what a trial records of its data, and who hears of it."""

import pytest
from picturing import deep, pictures, write_folder
from sweeping import events, run, train_here, write_spec

from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.data_facts import known_facts
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep


@pytest.fixture
def spec(tmp_path):
    """spec(**fields): a spec of one tiny trial on a folder of 24 colour images, one more of them damaged."""
    write_folder(tmp_path / "set", [*pictures(24), deep()], [i % 4 for i in range(25)])

    def build(**fields):
        data = {"source": "folder", "path": "set", "damaged": "skip"} | fields
        return write_spec(tmp_path, base={"data": data}, evaluate=[{"sampler": "euler", "steps": 1, "images": 8}])

    return build


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_a_trial_records_what_was_read_from_its_images(tmp_path, spec, memory, capsys):
    home, path = Home(tmp_path / "home"), spec(memory=memory)
    assert run("plan", path, "--home", home.root)[1]["trials"][0]["data"] is None
    before = run("plan", path, "--home", home.root)[1]["trials"][0]
    trial = train_here(home, path).trials[0]
    folder = home.trial(trial.id)
    assert folder.state() == "done", folder.status().error
    record = folder.description().data
    facts = {"train": 20, "holdout": 4, "classes": 4, "shape": [3, 8, 8], "damaged": 1, "resident": memory != "stream"}
    assert record.model_dump().items() >= facts.items() and "class000/00024.png" in record.damaged_named[0]
    assert record.train_by_class == [5] * 4 and len(record.mean) == 3
    assert next(iter(folder.evaluations().values())).metrics
    capsys.readouterr()
    after = run("plan", path, "--home", home.root)[1]["trials"][0]
    assert after["data"] == {k: record.model_dump()[k] for k in after["data"]}
    assert after["data"] == known_facts(home, trial.fields.data).model_dump(exclude_unset=True)
    assert "1 damaged images are left out, first " in capsys.readouterr().err
    assert after["params"]["total"] < before["params"]["total"]  # 4 classes were read, 1,000 had been assumed
    assert run("logs", trial.id, "--home", home.root)[1]["damaged"] == 1
    assert run("sample", trial.id, "--home", home.root, "--n", 2, "--steps", 1)[0] == OK
    assert run("sample", trial.id, "--home", home.root, "--class", 4)[0] == BAD_INPUT


def test_resident_and_streamed_trials_are_one_trial(tmp_path, spec):
    ids = {load_sweep(spec(memory=memory)).trials[0].id for memory in ("resident", "stream", "auto")}
    assert len(ids) == 1
    home = Home(tmp_path / "home")
    train_here(home, spec(memory="stream"))
    other = Home(tmp_path / "other")
    trial = train_here(other, spec(memory="resident")).trials[0]
    streamed = events(home, trial.id)
    assert streamed and streamed == events(other, trial.id)


def test_a_damaged_image_fails_its_trial_in_one_line(tmp_path, spec):
    home = Home(tmp_path / "home")
    trial = train_here(home, spec(damaged="refuse")).trials[0]
    status = home.trial(trial.id).status()
    assert status.state == "failed" and "00024.png: a picture of mode I;16; convert it" in status.error
    assert status.error.isprintable()
