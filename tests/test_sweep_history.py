"""A sweep's record: what is refused is not recorded, and nothing that was ever recorded is forgotten."""

import contextlib
import shutil
import signal
import sys
import threading

import pytest
from sweeping import VARIANTS, die, finish, in_child, run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.cli.options import command_line
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.revisions import revisions
from dsd_lab.home.sweep_records import Asked
from dsd_lab.runs import ray_engine as engine
from dsd_lab.runs.data_shelf import DataShelf
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
    monkeypatch.setattr(engine, "connected", lambda home, cluster: contextlib.nullcontext())
    monkeypatch.setattr(engine.ray, "nodes", lambda: [{"Resources": {"CPU": 2.0}, "Alive": True}])


def test_a_sweep_that_asks_for_more_than_there_is_leaves_its_record_as_it_was(trained, machine, capsys):
    home, spec, trial = trained
    path = home.sweep_folder("tiny") / "manifest.json"
    before = path.read_bytes()
    larger = ("--set", "base.network.width=32", "--set", "base.resources.cpus=3")
    assert run("sweep", spec, "--home", home.root, "--no-tracking", *larger)[0] == NO_RESOURCES
    assert "needs 3, but there are 2" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run("status", "--home", home.root)[1]["sweeps"][0]["states"] == {"done": 1}
    code, answer = run("gc", "--yes", "--home", home.root)
    assert code == OK and not any(item["kind"] == "trial" for item in answer["items"])
    assert home.trial(trial).state() == "done"


def test_a_first_sweep_that_is_refused_leaves_no_record(machine, tmp_path):
    spec = write_spec(tmp_path, base={"resources": {"cpus": 3.0}})
    assert run("sweep", spec, "--home", tmp_path / "home")[0] == NO_RESOURCES
    assert Home(tmp_path / "home").manifests() == {}


def test_a_sweep_whose_trials_began_with_other_code_leaves_its_record_as_it_was(kept, machine, capsys):
    home, spec, _ = kept
    path = home.sweep_folder("tiny") / "manifest.json"
    before = path.read_bytes()
    (trial,) = load_sweep(spec, sets=["seeds=[1]"]).trials
    home.trial(trial.id).checkpoints.mkdir(parents=True)
    home.trial(trial.id).write_status(state="interrupted", code="another", step=4, steps=12)
    assert run("sweep", spec, "--home", home.root, "--no-tracking", "--set", "seeds=[1]")[0] == BAD_INPUT
    assert "other training code" in capsys.readouterr().err and path.read_bytes() == before


# -- Revisions -----------------------------------------------------------------------------------------


@pytest.fixture
def kept(trained, tmp_path):
    """A copy of the finished sweep."""
    home, spec, trial = trained
    shutil.copytree(home.root, tmp_path / "home")
    return Home(tmp_path / "home"), spec, trial


EDITS = [["base.network.width=32"], ["seeds=[3,4]"], ["base.data.path=/nowhere", "base.data.source=idx"]]


@pytest.mark.parametrize("edits", EDITS)
def test_gc_never_offers_a_finished_trial_that_the_sweep_named_before(edits, kept):
    home, spec, trial = kept
    home.write_manifest(manifest_of(load_sweep(spec, sets=edits)))
    assert trial not in home.manifests()["tiny"].ids
    _, answer = run("gc", "--yes", "--home", home.root)
    assert not any(item["kind"] == "trial" for item in answer["items"]) and home.trial(trial).state() == "done"
    assert run("rm", "tiny", "--yes", "--home", home.root)[0] == OK  # it goes with its sweep
    assert not home.trial(trial).root.exists()


def test_a_record_that_was_made_before_there_was_a_history_is_its_first_revision(kept):
    home, spec, trial = kept
    (home.sweep_folder("tiny") / "revisions.json").unlink()
    home.write_manifest(manifest_of(load_sweep(spec, sets=["seeds=[1]"])), "dsd-lab sweep")
    assert [trial in r.trials for r in revisions(home.sweep_folder("tiny"))] == [True, False]


def test_the_history_says_what_was_asked_when_by_which_command_and_what_changed(kept):
    home, spec, _ = kept

    def ask(*sets):
        manifest = manifest_of(load_sweep(spec, sets=list(sets)))
        return home.write_manifest(manifest, f"dsd-lab sweep {' '.join(sets)}"), manifest.run_at

    same, _ = ask()
    wider, at = ask("base.network.width=32")
    again, _ = ask("base.network.width=32")
    back, _ = ask()
    assert same is again is None
    assert wider == "revision 2 of its settings: base.network.width 16 -> 32"
    assert back == "revision 1 of its settings: requested before; base.network.width 32 -> 16"
    found = {r.number: r for r in revisions(home.sweep_folder("tiny"))}
    assert list(found) == [2, 1] and [len(found[n].runs) for n in (1, 2)] == [3, 2]
    assert found[2].runs[0] == Asked(at=at, command="dsd-lab sweep base.network.width=32")
    assert found[2].changes == "base.network.width 16 -> 32"


def test_status_of_a_sweep_shows_its_history(kept, capsys):
    home, spec, trial = kept
    manifest = manifest_of(load_sweep(spec, sets=["base.network.width=32"]))
    home.write_manifest(manifest, "dsd-lab sweep spec.yaml --set base.network.width=32")
    assert "revisions" not in run("status", "--home", home.root)[1]["sweeps"][0]
    first, second = run("status", "tiny", "--home", home.root)[1]["sweeps"][0]["revisions"]
    assert first["number"] == 1 and first["trials"] == [trial] and first["changes"] is None
    assert second["changes"] == "base.network.width 16 -> 32" and second["settings"]["spec"] == manifest.spec
    assert second["runs"] == [{"at": manifest.run_at, "command": "dsd-lab sweep spec.yaml --set base.network.width=32"}]
    capsys.readouterr()
    assert main(["status", "tiny", "--home", str(home.root)]) == OK
    *_, old, new, changes = capsys.readouterr().out.splitlines()
    assert old.startswith("  1  requested 20") and old.endswith(", 1 trial: command not recorded")
    assert new.startswith("  2  requested 20") and new.endswith(
        ", 1 trial: dsd-lab sweep spec.yaml --set base.network.width=32"
    )
    assert changes == "     changes base.network.width 16 -> 32"
    assert main(["status", "tny", "--home", str(home.root)]) == BAD_INPUT
    assert "no sweep 'tny' has been run in" in (error := capsys.readouterr().err) and "did you mean 'tiny'?" in error
    (home.sweep_folder("tiny") / "revisions.json").write_text('{"format": 1, "revisi')
    assert main(["status", "tiny", "--home", str(home.root)]) == BAD_INPUT
    assert "revisions.json: is damaged" in capsys.readouterr().err


def test_a_history_that_cannot_be_read_stops_gc_and_sweep(kept, capsys):
    home, spec, _ = kept
    (home.sweep_folder("tiny") / "revisions.json").write_text('{"format": 1, "revisions": [{"trials": ["../a"]}]}')
    for verb in (["gc", "--yes"], ["rm", "tiny", "--yes"]):
        assert main([*verb, "--home", str(home.root)]) == BAD_INPUT
        assert "revisions.json: is damaged" in capsys.readouterr().err
    with pytest.raises(BadInput, match="is damaged"):
        home.write_manifest(manifest_of(load_sweep(spec)))


def test_passwords_do_not_go_into_a_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/dsd-lab", "sweep", "a b.yaml", "--tracking-uri", "http://me:secret@host"])
    assert command_line().startswith("dsd-lab sweep 'a b.yaml' --tracking-uri ") and "secret" not in command_line()


# -- Trials whose process ended ------------------------------------------------------------------------


def test_a_trial_that_hangs_reads_failed_and_one_that_is_killed_interrupted(tmp_path, monkeypatch):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path, base={"resources": {"patience": 0.2}})
    (trial,) = load_sweep(spec).trials
    home.write_manifest(manifest_of(load_sweep(spec)))

    def hang(*_):
        threading.Event().wait()

    monkeypatch.setattr(DataShelf, "get", hang)
    assert in_child(lambda: finish(home, trial)) == 1
    (row,) = run("status", "--home", home.root)[1]["sweeps"][0]["trials"]
    assert row["state"] == "failed" and home.trial(trial.id).status().error.startswith("hang: no step in ")
    monkeypatch.setattr(DataShelf, "get", lambda *_: die())
    assert in_child(lambda: finish(home, trial)) == -signal.SIGKILL
    (row,) = run("status", "--home", home.root)[1]["sweeps"][0]["trials"]
    assert row["state"] == "interrupted"
