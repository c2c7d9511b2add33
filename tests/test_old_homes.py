"""Home folders of earlier versions stay readable; files of later ones are refused by their number."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sweeping import events, run

from dsd_lab.api import load_trial
from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints, newest_checkpoint
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import ENDED, Home
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.training_code import training_code

OLD = sorted((Path(__file__).parent / "fixtures").glob("home-schema*"))
STATES = {"dsd": "done", "naive": "interrupted", "wild": "diverged", "broken": "failed"}


@pytest.fixture(params=OLD, ids=lambda path: path.name)
def old(request, tmp_path):
    """A copy of an old home, its spec, and its trials by variant."""
    shutil.copytree(request.param, tmp_path / "old")
    home = Home(tmp_path / "old" / "home")
    (manifest,) = home.manifests().values()
    return home, tmp_path / "old" / "spec.yaml", {t["variant"]: t["id"] for t in manifest["trials"]}


def test_f21_an_old_home_is_read_and_its_trials_are_found_by_todays_identities(old, capsys):
    home, spec, ids = old
    assert {variant: home.trial(i).state() for variant, i in ids.items()} == STATES
    assert {t.variant: t.id for t in load_sweep(spec).trials} == ids
    code, answer = run("status", "--home", home.root)
    assert code == OK and len(answer["sweeps"][0]["trials"]) == 4
    for variant in ("dsd", "wild", "naive"):
        code, answer = run("logs", ids[variant], "--home", home.root)
        assert code == OK and answer["metrics"]
    assert run("gc", "--home", home.root)[0] == OK


def test_f21_an_old_home_is_continued(old):
    home, spec, ids = old
    plan = load_sweep(spec)
    (interrupted,) = plan.only(["variant=naive"]).trials
    folder = home.trial(ids["naive"])
    before = events(home, ids["naive"])
    words = ["train", str(spec), "--variant", "naive", "--home", str(home.root), "--no-tracking"]
    began, changed = folder.status()["code"], folder.status()["code"] != training_code()
    if changed:  # nothing goes on unasked where the training code is another
        assert main(words) == BAD_INPUT
    assert main([*words, "--allow-code-change"]) == OK
    assert folder.state() == "done", folder.status()
    new = [{"code": training_code(), "step": 8}] if changed else []
    assert folder.status()["trained_by"] == [{"code": began, "step": 0}, *new]
    path, tensors, _ = newest_checkpoint(folder.checkpoints)
    assert path.name == f"step-{interrupted.fields.training.steps:09d}"
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())
    network = load_trial(home.root, interrupted.id).network
    average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    assert average and all(torch.equal(average[k], v) for k, v in network.state_dict().items() if k in average)
    after = events(home, ids["naive"])
    resumed = [line["kind"] == "checkpoint" and line["step"] == 8 for line in before].index(True) + 1
    assert after[:resumed] == before[:resumed] and after[-1]["kind"] == "finished"
    assert [line["n"] for line in after] == list(range(len(after)))


@pytest.mark.slow
def test_f21_an_old_home_is_stored_reported_and_exported(old, tmp_path):
    home, _, ids = old
    code, _ = run("report", "--home", home.root)
    page = (home.report_folder("old") / "report.md").read_text()
    assert code == OK and all(variant in page for variant in ids)
    home.trial(ids["naive"]).write_status(state="failed", error="left")  # a trial that may go on is not exported
    assert run("export", "old", "--home", home.root, "--out", tmp_path / "out", "--weights")[0] == OK
    assert run("import", tmp_path / "out", "--home", tmp_path / "other")[0] == OK
    assert {home.trial(i).state() for i in ids.values()} >= set(ENDED)


NEWER = {
    "manifest": (lambda home, ids: home.sweep_folder("old") / "manifest.json", ["status"]),
    "trial.json": (lambda home, ids: home.trial(ids["dsd"]).root / "trial.json", ["logs", "dsd"]),
    "spool": (lambda home, ids: home.trial(ids["dsd"]).spool, ["logs", "dsd"]),
    "spool at the store": (lambda home, ids: home.trial(ids["dsd"]).spool, ["report"]),
}


@pytest.mark.parametrize("what", NEWER)
def test_a_file_of_a_newer_version_is_refused_by_its_number(what, old, capsys):
    home, _, ids = old
    place, verb = NEWER[what]
    path = place(home, ids)
    if path.suffix == ".jsonl":
        first, rest = path.read_text().split("\n", 1)
        path.write_text(json.dumps(json.loads(first) | {"format": 2}) + "\n" + rest)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    code = main([*(ids.get(word, word) for word in verb), "--home", str(home.root)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == BAD_INPUT
    assert line.startswith(f"dsd-lab: {path}") and "format 2 is newer than this program reads, which is 1" in line


def test_a_checkpoint_of_a_newer_version_is_refused_by_its_number_and_stays(old):
    home, spec, ids = old
    (trial,) = load_sweep(spec).only(["variant=naive"]).trials
    (newest,) = list_checkpoints(home.trial(ids["naive"]).checkpoints)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    assert [p.state for p in run_trial(home, trial, [], DataShelf())][-1] == "failed"
    assert "format 2 is newer than this program reads" in home.trial(trial.id).status()["error"]
    assert list_checkpoints(home.trial(trial.id).checkpoints) == [newest]
