"""Home folders of earlier versions stay readable; files of later ones are refused by their number."""

import json
import shutil
from pathlib import Path

import pytest
from sweeping import run

from dsd_lab.api import load_trial
from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import ENDED
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.renamed import REMOVED, RENAMED, present_fields
from dsd_lab.specs.trial import SCHEMA_VERSION

OLD = sorted((Path(__file__).parent / "fixtures").glob("home-schema*"))
STATES = {"dsd": "done", "naive": "interrupted", "wild": "diverged", "broken": "failed"}


@pytest.fixture(params=OLD, ids=lambda path: path.name)
def old(request, tmp_path):
    """A copy of an old home, its spec, and its trials by variant."""
    shutil.copytree(request.param, tmp_path / "old")
    home = Home(tmp_path / "old" / "home")
    (manifest,) = home.manifests().values()
    return home, tmp_path / "old" / "spec.yaml", {t.variant: t.id for t in manifest.trials}


def test_f21_an_old_home_is_read_and_its_trials_keep_their_ids(old, capsys):
    home, _, ids = old
    assert {variant: home.trial(i).state() for variant, i in ids.items()} == STATES
    code, answer = run("status", "--home", home.root)
    assert code == OK and {t["id"] for t in answer["sweeps"][0]["trials"]} == set(ids.values())
    for variant in ("dsd", "wild", "naive"):
        code, answer = run("logs", ids[variant], "--home", home.root)
        assert code == OK and answer["metrics"]
    assert run("gc", "--home", home.root)[0] == OK
    trained = load_trial(home.root, ids["dsd"])
    assert trained.fields.training.grad_accum_steps == 1 and trained.fields.optimiser.schedule == "wsd"


@pytest.mark.integration
def test_f21_a_trial_of_an_old_schema_is_not_continued_but_trained_anew_under_an_id_of_its_own(old, capsys):
    home, spec, ids = old
    (today,) = load_sweep(spec).only(["variant=naive"]).trials
    assert today.id not in ids.values()
    folder = home.trial(ids["naive"])
    before = {path: path.read_bytes() for path in sorted(folder.root.rglob("*")) if path.is_file()}
    assert main(["train", str(spec), "--variant", "naive", "--home", str(home.root), "--no-tracking"]) == OK
    assert home.trial(today.id).state() == "done"
    assert json.loads((home.trial(today.id).root / "trial.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert {path: path.read_bytes() for path in sorted(folder.root.rglob("*")) if path.is_file()} == before


def test_f21_a_trial_of_an_old_schema_is_not_reproduced(old, capsys):
    home, _, ids = old
    assert main(["reproduce", ids["dsd"], "--home", str(home.root)]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "schema version 1" in line and f"version {SCHEMA_VERSION}" in line


def test_records_of_any_version_are_read_under_todays_names(old):
    home, _, ids = old
    path, manifest = home.trial(ids["dsd"]).root / "trial.json", home.sweep_folder("old") / "manifest.json"
    earlier = {"accumulate": 2, "recompute": True, "more_emas": [0.5], "flow_steps": 3, "cuda_graphs": False}
    recorded, swept = json.loads(path.read_text()), json.loads(manifest.read_text())
    for record in (recorded["fields"], recorded["canonical"], swept["trials"][0]["canonical"]):
        record["training"] |= earlier
        record["optimiser"]["schedule"] = "tail"
    path.write_text(json.dumps(recorded))
    manifest.write_text(json.dumps(swept))
    for record in (home.trial(ids["dsd"]).description(), home.manifests()["old"].trials[0]):
        fields = getattr(record, "fields", record.canonical)
        training = fields["training"]
        assert (
            not {*RENAMED["training"], *REMOVED["training"]} & set(training)
            and fields["optimiser"]["schedule"] == "wsd"
        )
        assert training["grad_accum_steps"] == 2 and training["activation_checkpointing"] is True
        assert training["extra_ema_decays"] == [0.5] and training["noise_draws"] == 3
        assert present_fields(fields) == fields
    assert home.trial(ids["dsd"]).description().trial.training.grad_accum_steps == 2


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
    home.trial(ids["naive"]).root.rename(home.trial(trial.id).root)
    (newest,) = list_checkpoints(home.trial(trial.id).checkpoints)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    assert [p.state for p in run_trial(home, trial, [], DataShelf())][-1] == "failed"
    assert "format 2 is newer than this program reads" in home.trial(trial.id).status().error
    assert list_checkpoints(home.trial(trial.id).checkpoints) == [newest]
