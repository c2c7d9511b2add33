"""Records reproduce: a sweep's record gives its trials again, and one trial is trained again and compared to the bit."""

import json
import shutil

import pytest
from sweeping import run, train_here, write_idx, write_spec

from dsd_lab import provenance
from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK, TRIALS_FAILED
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.resolved import resolved_spec
from dsd_lab.store.mlflow_store import Store

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with one finished trial, whose steps an override has set, and its export with weights."""
    folder = tmp_path_factory.mktemp("reproduced")
    spec, home = write_spec(folder), Home(folder / "home")
    arguments = ["train", str(spec), "--variant", "dsd", "--home", str(home.root), "--no-tracking"]
    assert main([*arguments, "--set", "training.steps=8", "--set", "optimiser.lr=0.002"]) == OK
    (trial,) = load_sweep(spec, sets=["training.steps=8", "optimiser.lr=0.002"]).trials
    assert run("export", "tiny", "--home", home.root, "--out", folder / "export", "--weights")[0] == OK
    return folder, trial.id


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy"


# -- The record --------------------------------------------------------------------------------------


def test_the_command_and_every_override_are_in_manifest_trial_export_and_store(trained, tmp_path):
    folder, trial = trained
    home = Home(folder / "home")
    manifest = home.manifests()["tiny"]
    assert manifest.set == ["training.steps=8", "optimiser.lr=0.002"]
    for command in (manifest.command, home.trial(trial).description().provenance.command):
        assert command.startswith("dsd-lab train ") and command.endswith(
            "--set training.steps=8 --set optimiser.lr=0.002"
        )
    exported = json.loads((folder / "export" / "sweeps" / "tiny" / "manifest.json").read_text())
    assert (exported["command"], exported["set"]) == (manifest.command, manifest.set)
    store = Store(home)
    store.sync(manifest)
    runs = store.client.search_runs([store.client.get_experiment_by_name("tiny").experiment_id])
    assert {r.data.tags["dsd.command"] for r in runs} == {manifest.command}


def test_plan_on_the_exported_spec_gives_the_exported_ids(trained):
    folder, trial = trained
    code, answer = run("plan", folder / "export" / "sweeps" / "tiny" / "spec.json", "--home", folder / "none")
    assert code == OK and [row["id"] for row in answer["trials"]] == [trial]


def test_a_resolved_spec_gives_the_same_trials_whatever_it_was_made_of(tmp_path):
    (tmp_path / "images").mkdir()
    write_idx(tmp_path / "images")
    spec = write_spec(
        tmp_path / "specs",
        {"dsd": {"optimiser": {"lr": 0.01}}, "idx": {"data": {"source": "idx", "path": "../images"}}},
        grid={"training.steps": [4, 8], "optimiser.weight_decay": [0.0, 0.1]},
        seeds=[0, 1],
        profiles={"small": {"seeds": [5], "base": {"training": {"batch_size": 4}}}},
        evaluate=[{"images": 20, "sampler": "euler", "steps": 2}],
    )
    for profile in (None, "small"):
        for sets in ([], ["training.steps=6"], ["optimiser.lr=0.5", "seeds=[3]"], ["variants.dsd.optimiser.lr=0.3"]):
            plan = load_sweep(spec, profile, sets)
            other = tmp_path / "elsewhere" / "spec.json"
            other.parent.mkdir(exist_ok=True)
            other.write_text(json.dumps(resolved_spec(plan)))
            again = load_sweep(other)
            assert [(t.id, t.name) for t in again.trials] == [(t.id, t.name) for t in plan.trials]
            assert again.trials[-1].fields == plan.trials[-1].fields
            assert manifest_of(again).evaluations == manifest_of(plan).evaluations


def test_passwords_and_secrets_are_in_no_record():
    provenance.remember_call(["sweep", "s.yaml", "--tracking-uri", "http://me:canary@host:1", "--set", "a=b"])
    assert provenance.called_with() == "dsd-lab sweep s.yaml --tracking-uri 'http://me:***@host:1' --set a=b"
    for secret in ("can ary", "can'ary", 'can"@ary', "can/ary"):
        provenance.remember_call(["report", f"--tracking-uri=postgresql://me:{secret}@host/db"])
        assert "ary" not in provenance.called_with() and "***@host/db" in provenance.called_with()
    text = '+API_KEY = "canary"\n+  hub_token: canary\n+x = 1\n+url = "https://u:canary@host"\n'
    assert "canary" not in provenance.without_secrets(text) and "+x = 1" in provenance.without_secrets(text)
    provenance.remember_call(None)


def test_a_work_tree_that_differs_from_its_commit_is_kept_with_the_trial(tmp_path, monkeypatch):
    long = "+" + "x" * 10**6
    monkeypatch.setattr(provenance, "_git", lambda *asked: long if asked[0] == "diff" else "abcdef0")
    provenance.work_tree_diff.cache_clear()
    try:
        home = Home(tmp_path / "home")
        (trial,) = train_here(home, write_spec(tmp_path), "training.steps=2").trials
        text = (home.trial(trial.id).root / "code.diff").read_text()
        assert text.startswith("+xxx") and len(text) < 300_000 and "[cut at" in text
        assert len(home.trial(trial.id).description().provenance.git_diff) == 64
        assert run("export", "tiny", "--home", home.root, "--out", tmp_path / "export")[0] == OK
        assert run("import", tmp_path / "export", "--home", tmp_path / "other")[0] == OK
        assert (Home(tmp_path / "other").trial(trial.id).root / "code.diff").read_text() == text
    finally:
        provenance.work_tree_diff.cache_clear()


# -- Reproducing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["home", "export"])
def test_a_trial_that_is_trained_again_is_equal_to_the_bit_and_says_so(source, copy, trained, tmp_path, capsys):
    asked = ["--home", copy / "home"] if source == "home" else ["--home", tmp_path / "new", "--from", copy / "export"]
    before = {p: p.read_bytes() for p in (copy / "home" / "trials").rglob("*") if p.is_file()}
    assert main(["reproduce", trained[1][:6], *map(str, asked)]) == OK
    told = capsys.readouterr().out
    assert "weights: bit-identical" in told and "records: equal" in told
    assert {p: p.read_bytes() for p in (copy / "home" / "trials").rglob("*") if p.is_file()} == before
    code, answer = run("reproduce", trained[1], *asked)
    assert code == OK and answer["equal"] and answer["folder"].endswith(f"-2/trials/{trained[1]}")


def test_a_trial_that_comes_out_otherwise_says_by_how_much_and_what_was_other(copy, trained, capsys):
    home = Home(copy / "home")
    path = home.trial(trained[1]).root / "trial.json"
    described = json.loads(path.read_text())
    described["fields"]["optimiser"]["lr"] = 0.003
    described["provenance"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(described))
    assert main(["reproduce", trained[1], "--home", str(home.root)]) == TRIALS_FAILED
    told = capsys.readouterr().out
    assert "tensors differ, by at most" in told and "records: differ from step" in told
    assert 'version of torch: "1.0" then' in told and "code:" not in told


def test_what_cannot_be_reproduced_is_one_line(copy, trained, tmp_path, capsys):
    for asked, message in (
        ([trained[1], "--home", str(tmp_path / "none")], "no such trial"),
        ([trained[1], "--home", str(tmp_path / "none"), "--from", str(tmp_path)], "has no export.json"),
    ):
        assert main(["reproduce", *asked]) == BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_stale_is_explained_where_it_is_shown(copy, trained, capsys):
    home = Home(copy / "home")
    home.trial(trained[1]).write_status(code="abcdefabcdef")
    sets = ["--set", "training.steps=8", "--set", "optimiser.lr=0.002"]
    for verb in (["status"], ["plan", str(copy / "spec.yaml"), *sets]):
        assert main([*verb, "--home", str(home.root)]) == OK
        told = capsys.readouterr().out
        assert "stale: finished with other training code than the present" in told and "reproduce" in told


def test_a_reproduction_is_no_trial_of_the_home(copy, trained, capsys):
    assert main(["reproduce", trained[1], "--home", str(copy / "home"), "--json"]) == OK
    assert [p.name for p in (copy / "home" / "trials").iterdir()] == [trained[1]]
    assert run("gc", "--home", copy / "home")[0] == OK


def test_an_imported_trial_is_marked_until_everything_of_it_was_reproduced(tmp_path, capsys):
    spec, maker = write_spec(tmp_path, evaluate=[{"metrics": ["psnr"], "images": 20}]), Home(tmp_path / "maker")
    (trial,) = train_here(maker, spec).trials
    assert run("export", "tiny", "--home", maker.root, "--out", tmp_path / "export", "--weights")[0] == OK
    for forged in (True, False):
        home = Home(tmp_path / f"home-{forged}")
        assert run("import", tmp_path / "export", "--home", home.root)[0] == OK
        (evaluation,) = (home.trial(trial.id).root / "evaluations").glob("*.json")
        if forged:  # as it would have come with an index that fits
            content = json.loads(evaluation.read_text())
            content["metrics"] = {name: value + 1 for name, value in content["metrics"].items()}
            evaluation.write_text(json.dumps(content))
        code, answer = run("reproduce", trial.id, "--home", home.root)
        assert code == OK and answer["imported"] is forged
        assert answer["other"] == (f"evaluation {evaluation.stem}" if forged else None)
        assert run("status", "--home", home.root)[1]["sweeps"][0]["trials"][0]["imported"] is forged
        assert (
            any("imported" in notice for notice in run("report", "tiny", "--home", home.root)[1]["notices"]) is forged
        )
