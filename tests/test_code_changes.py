"""A trial that other training code began goes on where that was asked for, and everything that shows it says so."""

import json
import shutil
from pathlib import Path

import pytest
from sweeping import free_port, run

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.trial_records import CodeFrom, DeviceFrom, Status
from dsd_lab.provenance import processor
from dsd_lab.runs.continuity import format_codes, format_devices, trained_by, trained_on
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.training_code import training_code

KEPT = Path(__file__).parent / "fixtures" / "home-schema1"
OTHER = "0123456789ab"


@pytest.fixture
def begun(tmp_path):
    """A home, its spec and its trial that other code trained for 8 of 12 steps."""
    shutil.copytree(KEPT, tmp_path / "old")
    spec, home = tmp_path / "old" / "spec.yaml", Home(tmp_path / "old" / "home")
    (trial,) = load_sweep(spec).only(["variant=naive"]).trials
    asked = iter(range(1000))
    assert [p.state for p in run_trial(home, trial, [], DataShelf(), lambda: next(asked) == 8)][-1] == "interrupted"
    home.trial(trial.id).write_status(code=OTHER, trained_by=[{"code": OTHER, "step": 0}], trained_on=[])
    return home, spec, home.trial(trial.id)


def codes(entries):
    return [(entry.code, entry.step) for entry in entries]


def train(begun, *more):
    home, spec, _ = begun
    return main(["train", str(spec), "--variant", "naive", "--home", str(home.root), "--no-tracking", *more])


def test_f14_trials_that_other_code_began_are_refused_and_go_on_only_where_that_is_asked_for(begun, capsys):
    home, spec, folder = begun
    files = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    for verb in (
        ["train", str(spec), "--variant", "naive"],
        ["sweep", str(spec), "--only", "variant=naive", "--no-tracking"],
    ):
        assert main([*verb, "--home", str(home.root)]) == BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dsd-lab: 1 unfinished trials began with other training code than the present")
        assert str(folder.root) in line and "--allow-code-change" in line
    assert {path: path.read_bytes() for path in files} == files
    # Past that refusal, a sweep comes to the next one: no cluster answers there.
    sweep = [
        "sweep",
        str(spec),
        "--only",
        "variant=naive",
        "--home",
        str(home.root),
        "--no-tracking",
        "--address",
        f"127.0.0.1:{free_port()}",
    ]
    assert main([*sweep, "--allow-code-change"]) == NO_RESOURCES
    assert train(begun, "--allow-code-change") == OK
    assert folder.state() == "done"
    assert [(e.code, e.step) for e in folder.status().trained_by] == [(OTHER, 0), (training_code(), 8)]


def test_f14_what_is_trained_again_is_no_longer_by_the_code_that_trained_it_first(begun):
    _, _, folder = begun
    now = training_code()
    assert codes(trained_by(Home(folder.root).trial("0" * 12), 0)) == [(now, 0)]  # never begun
    assert codes(trained_by(folder, 0)) == [(now, 0)]
    folder.write_status(trained_by=[{"code": OTHER, "step": 0}, {"code": now, "step": 8}], code=now)
    assert codes(trained_by(folder, 4)) == [(OTHER, 0), (now, 4)]
    assert codes(trained_by(folder, 12)) == [(OTHER, 0), (now, 8)]
    (folder.root / "status.json").unlink()  # as a power cut may leave it
    description = folder.root / "trial.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"provenance": content["provenance"] | {"code": OTHER}}))
    assert codes(trained_by(folder, 8)) == [(OTHER, 0), (now, 8)]
    assert format_codes(Status(trained_by=trained_by(folder, 8))) == f"{OTHER} from step 0, {now} from step 8"
    assert format_codes(Status(trained_by=[CodeFrom(code=now, step=0)])) is None and format_codes(Status()) is None


def test_f13_a_trial_that_goes_on_on_another_processor_or_gpu_says_so(begun):
    _, _, folder = begun
    description = folder.root / "trial.json"
    content = json.loads(description.read_text())
    machine = content["provenance"]["machine"] | {"processor": "a Xeon"}
    description.write_text(json.dumps(content | {"provenance": content["provenance"] | {"machine": machine}}))
    assert trained_on(folder, 8, "a Xeon") == [DeviceFrom(device="a Xeon", step=0)]
    assert train(begun, "--allow-code-change") == OK
    assert [(e.device, e.step) for e in folder.status().trained_on] == [("a Xeon", 0), (processor(), 8)]
    assert format_devices(folder.status()) == f"a Xeon from step 0, {processor()} from step 8"
    assert format_devices(Status(trained_on=[DeviceFrom(device="a Xeon", step=0)])) is None


@pytest.mark.slow
def test_f14_logs_report_and_export_say_which_code_trained_what(begun, tmp_path):
    home, spec, folder = begun
    home.write_manifest(manifest_of(load_sweep(spec)))  # under the ids of today's schema version
    assert train(begun, "--allow-code-change") == OK
    said = f"{OTHER} from step 0, {training_code()} from step 8"
    assert run("logs", folder.id, "--home", home.root)[1]["code_changes"] == said
    moved = [{"device": "A100", "step": 0}, {"device": "H100", "step": 8}]
    folder.write_status(trained_on=moved)
    assert run("logs", folder.id, "--home", home.root)[1]["device_changes"] == "A100 from step 0, H100 from step 8"
    assert run("export", "old", "--home", home.root, "--out", tmp_path / "out")[0] == OK
    assert run("import", tmp_path / "out", "--home", tmp_path / "other")[0] == OK
    assert run("report", "old", "--home", tmp_path / "other")[0] == OK
    page = (tmp_path / "other" / "reports" / "old" / "report.md").read_text()
    assert "1 trial resumed with changed training code" in page and f"naive s0: {said}" in page
    assert "1 trial resumed on another device" in page and "naive s0: A100 from step 0, H100 from step 8" in page
