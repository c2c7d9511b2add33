"""Bad input that is not in a spec's text: places, options, and specs that change; the numbers are the catalogue's."""

import contextlib
import os
import resource
import socket
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest
from sweeping import run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, UNEXPECTED
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.mark import MARK, home_id
from dsd_lab.home.ownership import unseen
from dsd_lab.runs import ray_cluster, ray_engine, ray_health
from dsd_lab.runs.open_files import allow_open_files
from dsd_lab.runs.ray_callbacks import REFUSED, RecordFailures
from dsd_lab.specs.loading import load_sweep


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("dsd-lab: ")


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4"])
def test_b11_a_number_may_be_written_as_people_write_it(written, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: n\nbase: {{optimiser: {{lr: {written}}}}}\nvariants: {{a: {{}}}}\nseeds: [0]\n")
    assert load_sweep(spec).trials[0].fields.optimiser.lr == 1e-4


def test_b26_nothing_is_taken_from_the_environment_into_a_spec(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IMAGES", str(tmp_path))
    spec = write_spec(tmp_path, base={"data": {"source": "idx", "path": "${IMAGES}"}})
    said = refused(capsys, "sweep", spec, "--home", tmp_path / "home")
    assert f"no such folder {tmp_path}/${{IMAGES}}; idx reads " in said
    assert not (tmp_path / "home").exists()


def test_b36_a_home_that_is_a_file_is_refused(tmp_path, capsys):
    spec, home = write_spec(tmp_path), tmp_path / "home"
    home.write_text("not a folder")
    for verb in (["sweep", spec], ["train", spec, "--variant", "dsd"]):
        assert refused(capsys, *verb, "--home", home) == f"--home {home}: is a file; give a folder"
    assert home.read_text() == "not a folder"


def test_b36_a_home_below_a_link_that_leads_to_itself_is_refused(tmp_path, capsys):
    spec = write_spec(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    code = main(["sweep", str(spec), "--home", str(tmp_path / "loop" / "home")])
    (line,) = capsys.readouterr().err.splitlines()
    assert code not in (OK, UNEXPECTED) and "cannot be written" in line


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place where nobody can write")
def test_b36_a_home_that_cannot_be_written_is_refused(tmp_path, capsys):
    code = main(["sweep", str(write_spec(tmp_path)), "--home", "/proc/self/home"])
    (line,) = capsys.readouterr().err.splitlines()
    assert code not in (OK, UNEXPECTED) and line.startswith("dsd-lab: --home /proc/self/home: cannot be written: ")


def test_b36_a_report_does_not_replace_a_file(tmp_path, capsys):
    home = Home(tmp_path / "home")
    train_here(home, write_spec(tmp_path))
    (tmp_path / "mine").write_text("a thesis")
    assert refused(capsys, "report", "--home", home.root, "--out", tmp_path / "mine").endswith(
        "is a file; give a folder"
    )
    assert (tmp_path / "mine").read_text() == "a thesis"


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "abc"], ["--max-concurrent", "0"], ["--only"]])
def test_b37_and_b38_options_that_are_not_there_or_not_whole_are_exit_code_2(arguments, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(write_spec(tmp_path)), *arguments])
    assert ended.value.code == BAD_INPUT


def test_b39_a_spec_that_is_edited_after_it_ran_gives_other_trials_and_touches_none_that_were_there(tmp_path):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path)
    (before,) = train_here(home, spec).trials
    write_spec(tmp_path, base={"training": {"steps": 13}})
    (after,) = load_sweep(spec).trials
    assert after.id != before.id
    _, answer = run("plan", spec, "--home", home.root)
    assert [t["status"] for t in answer["trials"]] == ["pending"]
    assert home.trial(before.id).state() == "done"


def test_b39_a_spec_whose_records_alone_were_edited_keeps_its_trials(tmp_path):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path)
    train_here(home, spec)
    write_spec(tmp_path, base={"observation": {"log_every": 1}})
    _, answer = run("plan", spec, "--home", home.root)
    assert [t["status"] for t in answer["trials"]] == ["done"]


def test_a_home_whose_path_leaves_no_room_for_the_names_below_it_is_refused(tmp_path, capsys):
    long = tmp_path.joinpath(*["long" * 50] * 19)
    assert "bytes is too long; at most 3,695 are allowed" in refused(
        capsys, "sweep", write_spec(tmp_path), "--home", long
    )


def test_too_few_open_files_are_refused_and_a_soft_limit_is_raised(tmp_path, capsys, monkeypatch):
    limits, asked = [(64, 200)], []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[0])
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: asked.append(pair))
    assert main(["sweep", str(write_spec(tmp_path)), "--home", str(tmp_path / "home")]) == NO_RESOURCES
    (line,) = capsys.readouterr().err.splitlines()
    assert "allows 200 open files per process, but a sweep needs 256" in line and "ulimit -n" in line
    assert asked == [(200, 200)] and not (tmp_path / "home").exists()
    limits[0] = (64, resource.RLIM_INFINITY)
    allow_open_files()
    assert asked[-1] == (4096, resource.RLIM_INFINITY)


@pytest.mark.parametrize("told", ["The current node timed out during startup.\nThis could happen", ""])
def test_a_ray_that_does_not_start_is_one_line(told, tmp_path, capsys, monkeypatch):
    def fails(**_):
        raise Exception(told)

    monkeypatch.setattr(ray_cluster.ray, "init", fails)
    code = main(["sweep", str(write_spec(tmp_path)), "--home", str(tmp_path / "home"), "--no-tracking"])
    (line,) = capsys.readouterr().err.splitlines()
    reason = "The current node timed out during startup" if told else "Exception"
    assert code == NO_RESOURCES and f"Ray does not start: {reason}; if the machine was too busy" in line
    assert not Home(tmp_path / "home").manifests()  # a sweep that was refused leaves no record


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_cluster_that_does_not_answer_is_named_as_it_was_given(how, tmp_path, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        if how == "environment":
            monkeypatch.setenv("RAY_ADDRESS", address)
        given = ["--address", address] if how == "option" else []
        sweep = ["sweep", str(write_spec(tmp_path)), "--home", str(tmp_path / "home"), "--no-tracking", *given]
        assert main(sweep) == NO_RESOURCES
    (line,) = capsys.readouterr().err.splitlines()
    name = "--address" if how == "option" else "RAY_ADDRESS"
    assert line.startswith(f"dsd-lab: {name} {address}: no Ray cluster answers")


def test_a_worker_whose_machine_does_not_see_the_home_trains_nothing_and_its_trial_says_so(tmp_path):
    """A folder of the same path on a disk of its own is another home."""
    home, own = Home(tmp_path / "home"), Home(tmp_path / "own disk")
    (trial,) = load_sweep(write_spec(tmp_path)).trials
    for place in (home, own):
        place.prepare()
    before = sorted(own.root.rglob("*"))
    worker = object.__new__(ray_engine.TrialWorker)
    worker._begin({"job": {"home": str(own.root), "home_id": home.id}})
    result = worker.step()
    worker.cleanup()
    assert result["done"] and f"does not see the home folder {own.root}" in result[REFUSED]
    assert sorted(own.root.rglob("*")) == before
    tuned = mock.Mock(config={"job": {"trial": {"id": trial.id}}}, last_result=result)
    RecordFailures(home, fail_fast=False).on_trial_complete(0, [], tuned)
    assert home.trial(trial.id).state() == "failed" and home.trial(trial.id).status().error == result[REFUSED]


@pytest.mark.parametrize("damage", [Path.unlink, lambda mark: mark.write_text("{")], ids=["removed", "cut"])
def test_a_home_that_loses_its_mark_while_a_sweep_runs_is_still_that_home(damage, tmp_path):
    home, foreign = Home(tmp_path / "home"), Home(tmp_path / "not mounted")
    home.prepare()
    plan = load_sweep(write_spec(tmp_path))
    home.write_manifest(manifest_of(plan), "sweep")
    (foreign.root / "sweeps" / "theirs").mkdir(parents=True)
    before, known = sorted(foreign.root.rglob("*")), home.id
    damage(home.root / MARK)
    assert unseen(foreign, known) is not None and sorted(foreign.root.rglob("*")) == before
    assert unseen(home, known) is None and home_id(home.root) == known
    assert unseen(home, "0" * 32) is not None and home.id == known


def test_a_cluster_that_can_no_longer_be_reached_is_known_by_its_raylet_at_the_second_look_and_by_its_head_after_a_while(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_health, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(ray_health, "_PATIENCE", 0.2)
    with contextlib.ExitStack() as head, contextlib.ExitStack() as raylet, tempfile.TemporaryDirectory() as short:
        gcs = head.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = raylet.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        local.bind(f"{short}/raylet")
        local.listen(100)
        node = mock.Mock(all_processes={}, raylet_socket_name=f"{short}/raylet")
        node.gcs_address = f"127.0.0.1:{gcs.getsockname()[1]}"
        monkeypatch.setattr(ray_health.ray._private.worker, "_global_node", node)
        dead = ray_health.Health()
        assert dead() is None
        head.close()
        assert dead() is None  # it may be back in a moment
        threading.Event().wait(0.3)
        assert dead() == "gcs_server died or cannot be reached"
        raylet.close()
        assert dead() is None  # it may be busy
        assert dead() == "raylet died or cannot be reached"


@pytest.mark.parametrize("ends", [True, False])
def test_a_sweep_that_waits_in_rays_code_for_a_lost_process_is_ended(ends, monkeypatch):
    monkeypatch.setattr(ray_health, "_WATCH_EVERY", 0.01)
    monkeypatch.setattr(ray_health, "_NOTICE", 10.0 if ends else 0.01)
    monkeypatch.setattr(ray_health, "Health", lambda: lambda: "gcs_server died")
    ended, stuck = threading.Event(), []
    watch = ray_health.Watch(lambda what: (stuck.append(what), ended.set()))
    with watch:
        while watch.found is None:
            threading.Event().wait(0.01)
        assert watch.found == "gcs_server died" and ended.wait(0.0 if ends else 60.0) is not ends
    assert stuck == ([] if ends else ["gcs_server died"])
