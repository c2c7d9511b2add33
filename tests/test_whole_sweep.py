"""`dsd-lab bench --sweep`: what it makes of a home folder's moments, and a real sweep. No time is asserted."""

import json
import os

import pytest
from sweeping import run, write_spec

from dsd_lab.bench.summary import SWEEP_TARGETS, verdicts
from dsd_lab.bench.whole_sweep import figures, whole_sweep
from dsd_lab.cli.bench_tables import print_sweeps
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.home.home import Home


def test_occupancy_is_the_time_of_all_over_the_trials_own_a_slot(tmp_path):
    home = Home(tmp_path)
    moments = [(7, 0.0, 10.0), (8, 0.0, 8.0), (7, 10.5, 18.5), (8, 8.25, 20.0)]
    for number, (worker, started, ended) in enumerate(moments):
        folder = tmp_path / "trials" / str(number)
        folder.mkdir(parents=True)
        busy = ended - started - 0.5
        status = {"pid": worker, "started": started, "updated": ended, "seconds": busy, "state": "done"}
        (folder / "status.json").write_text(json.dumps(status))
    looks = [(0, {}), (1, {7: (900, 40)}), (3, {7: (950, 41), 8: (970, 40)}), (4, {8: (990, 42)}), (4, {})]
    found = figures(home, looks)
    busy = sum(ended - started for _, started, ended in moments) - 4 * 0.5
    assert found["trials"] == 4 and found["slots"] == 2 and found["busy_seconds"] == busy
    assert found["occupancy"] == pytest.approx(20 / (busy / 2))
    assert found["each_seconds"] == pytest.approx((10.5 + 8.25) / 2)
    assert found["beside_seconds"] == pytest.approx((1.0 + 0.75) / 2)
    assert found["memory"] == [900, 990] and found["handles"] == [40, 42]
    assert found["memory_growth"] == pytest.approx(1.1) and found["handles_growth"] == pytest.approx(1.05)
    assert figures(home, [])["memory"] is None  # nobody could look
    for path in tmp_path.glob("trials/*/status.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 0.1}))
    assert figures(home, [])["occupancy"] is None


def test_the_sweep_that_is_furthest_from_a_target_is_named(capsys):
    sweep = {
        "name": "a", "spec": "a.yaml", "trials": 4, "slots": 2, "wall_seconds": 30.0, "first_step_seconds": 9.0, "occupancy": 1.05,
        "beside_seconds": None, "each_seconds": None, "memory": None, "handles": [40, 44], "memory_growth": None, "handles_growth": 1.2,
    }  # fmt: skip
    other = sweep | {
        "name": "b",
        "spec": "b.yaml",
        "first_step_seconds": 16.0,
        "handles": [40, 40],
        "handles_growth": 1.0,
    }
    targets = verdicts([sweep, other], SWEEP_TARGETS)
    assert [(t["name"], t["trial"], t["met"]) for t in targets] == [
        ("first step", "b", False), ("occupancy", "a", True), ("handles", "a", False),
    ]  # fmt: skip
    made = {"python": "3.12.1", "versions": {"torch": "2.14"}, "code": "c0de"}
    machine = {"processor": "a CPU", "load": 0.1}
    print_sweeps({"sweeps": [sweep, other], "targets": targets, "machine": machine, "provenance": made})
    shown = capsys.readouterr().out
    assert "not measured here" in shown and "40 to 44" in shown and "16.00 s" in shown and "missed" in shown


def test_a_sweep_that_fails_is_told_with_its_last_words(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    with pytest.raises(BadInput, match=r"none.yaml: its sweep ended with exit code 2: .*no such file"):
        whole_sweep(str(tmp_path / "none.yaml"), [], home)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_sweep_is_measured_and_leaves_no_trial_in_the_home_folder(tmp_path):
    spec = write_spec(tmp_path, seeds=[0, 1, 2], base={"training": {"steps": 1, "batch_size": 8}})
    code, answer = run("bench", spec, "--sweep", "--home", tmp_path / "home")
    assert code == OK
    (sweep,) = answer["sweeps"]
    assert sweep["trials"] == 3 and 1 <= sweep["slots"] <= (os.cpu_count() or 1)
    assert 0 < sweep["first_step_seconds"] < sweep["wall_seconds"] and sweep["occupancy"] is None
    assert {t["name"] for t in answer["targets"]} >= {"first step", "beside"}
    assert not list((tmp_path / "home" / "trials").glob("*")) and not list(
        (tmp_path / "home" / "cache").glob("bench/tmp*")
    )
    assert run("bench", "nano8", "--sweep", "--home", tmp_path / "home")[0] == BAD_INPUT
