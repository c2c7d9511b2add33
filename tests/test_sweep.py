"""Real sweeps: Ray runs tiny trials, MLflow stores them, workers and drivers are killed in the middle.

One sweep of six variants in a home folder with a long path is run once and asked about by many tests;
its single worker runs the same computation first and last, with a failing and a diverging trial between.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from leftovers import nothing_left
from ray.cluster_utils import Cluster
from sweeping import (
    DEADLINE,
    EVALUATION,
    FOREIGN,
    LONG,
    VARIANTS,
    events,
    foreign_checkpoint,
    imported,
    in_child,
    outcome,
    processes_in,
    run,
    running,
    spooled_steps,
    start,
    stored_steps,
    wait_until,
    write_spec,
)

from dsd_lab.errors import BAD_INPUT, INTERRUPTED, NO_RESOURCES, OK, TERMINATED, TRIALS_FAILED, NoResources
from dsd_lab.files import temporary
from dsd_lab.files.locks import locked
from dsd_lab.files.temporary import private_folder
from dsd_lab.home.home import Home
from dsd_lab.planning.estimates import cached_shape
from dsd_lab.runs import ray_engine as engine
from dsd_lab.runs import run_trial as trial_running
from dsd_lab.runs.ray_cluster import _SOCKET_PATH_ROOM
from dsd_lab.runs.ray_engine import run_trials
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sweep import Plan
from dsd_lab.training_code import training_code

pytestmark = pytest.mark.integration

WORKERS_DIE = 15.0
"""Seconds in which the workers of a driver that was killed have died."""
AGAIN = {"data": {"revision": "2"}}
"""Another identity, the same computation."""


@dataclass
class Swept:
    home: Home
    spec: Path
    plan: Plan
    code: int
    answer: dict[str, Any]
    leftovers: list[str]

    def ids(self, variant: str) -> list[str]:
        return [t.id for t in self.plan.trials if t.variant == variant]

    def status(self, variant: str) -> list[dict[str, Any]]:
        return [self.home.trial(i).status() for i in self.ids(variant)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    spec = write_spec(folder, {**VARIANTS, "broken": FOREIGN, "again": AGAIN}, seeds=[0, 1])
    home = Home(folder / "a home with a long path" / ("x" * 107))
    for trial in load_sweep(spec).only(["variant=broken"]).trials:
        foreign_checkpoint(home, trial)
    with pytest.MonkeyPatch.context() as patch:
        temporary = tempfile.mkdtemp(prefix="t", dir="/tmp")
        patch.setenv("TMPDIR", temporary)
        patch.setattr(tempfile, "tempdir", None)
        code, answer = run("sweep", spec, "--home", home.root, "--max-concurrent", 1)
        leftovers = [str(path) for path in Path(temporary).rglob("*")]
        shutil.rmtree(temporary)
    tempfile.tempdir = None
    return Swept(home, spec, load_sweep(spec), code, answer, leftovers)


def attempts(home: Home, plan: Plan) -> dict[str, Any]:
    return {t.id: [getattr(home.trial(t.id).status(), k) for k in ("attempt", "started", "pid")] for t in plan.trials}


# -- One sweep ---------------------------------------------------------------------------------------


def test_one_failing_trial_gives_exit_code_3_and_does_not_stop_the_others(swept):
    states = {
        v: {e["state"] for e in swept.answer["trials"] if e["name"].startswith(v)} for v in swept.plan.spec.variants
    }
    assert swept.code == TRIALS_FAILED
    assert states == {
        "dsd": {"done"},
        "control": {"done"},
        "naive": {"done"},
        "wild": {"diverged"},
        "broken": {"failed"},
        "again": {"done"},
    }


def test_a_failed_trial_says_what_is_wrong_with_its_checkpoint(swept):
    for status in swept.status("broken"):
        assert "step-000000004: the weights of another network" in status.error


def test_a_diverged_trial_stops_before_its_last_step_and_says_at_which(swept):
    for trial, status in zip(swept.ids("wild"), swept.status("wild"), strict=True):
        assert 0 < status.step < 12
        assert f"step {status.step + 1} is not finite" in status.error
        assert events(swept.home, trial)[-1]["kind"] == "diverged"


def test_a_sweep_that_only_diverged_is_a_result_and_not_a_failure(swept):
    code, answer = run("sweep", swept.spec, "--home", swept.home.root, "--only", "variant=wild", "--no-tracking")
    assert code == OK
    assert answer["states"] == {"diverged": 2}


def test_a_worker_is_reused_and_no_state_leaks_from_one_trial_to_the_next(swept):
    assert len({status.pid for v in swept.plan.spec.variants for status in swept.status(v)}) == 1
    for first, last in zip(swept.ids("dsd"), swept.ids("again"), strict=True):
        assert first != last
        assert outcome(swept.home, first) == outcome(swept.home, last)


def test_seeds_differ(swept):
    first, second = swept.ids("dsd")
    assert outcome(swept.home, first)[1] != outcome(swept.home, second)[1]


def test_a_trial_in_a_worker_equals_the_same_trial_in_a_fresh_process_without_ray(swept, tmp_path):
    alone = start("train", swept.spec, "--variant", "naive", "--seed", 1, "--no-tracking", "--home", tmp_path)
    output, _ = alone.communicate(timeout=DEADLINE)
    assert alone.returncode == OK, output
    trial = swept.ids("naive")[1]
    assert outcome(Home(tmp_path), trial) == outcome(swept.home, trial)


def test_everything_that_trials_recorded_is_in_the_store_once(swept):
    ids = [trial.id for trial in swept.plan.trials if trial.variant != "broken"]
    assert stored_steps(swept.home) == spooled_steps(swept.home, ids)


def test_nothing_is_written_outside_the_home_folder_though_its_path_is_too_long_for_sockets(swept):
    assert len(str(swept.home.root)) > 107
    assert swept.leftovers == []
    assert sorted(path.name for path in swept.spec.parent.iterdir()) == [
        "a home with a long path",
        "damaged",
        "spec.yaml",
    ]
    assert list((swept.home.root / "ray").iterdir()) == []


@pytest.mark.parametrize("place", ["short", "x" * 60, "jos\u00e9", "a b", "a?b", "a%41"])
def test_a_private_folder_has_a_short_and_plain_path_and_goes_at_the_end(place, short_tmp, monkeypatch):
    (short_tmp / place).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp / place))
    with private_folder(_SOCKET_PATH_ROOM) as first, private_folder(_SOCKET_PATH_ROOM) as second:
        assert first != second
        for folder in (first, second):
            assert len(str(folder)) <= _SOCKET_PATH_ROOM and str(folder).isascii() and not set(" ?%") & set(str(folder))
            assert folder.stat().st_mode & 0o777 == 0o700
            assert folder.parent == (short_tmp / place if place == "short" else Path("/tmp"))
            (folder / "ray" / "logs").mkdir(parents=True)
    assert not first.exists() and not second.exists()


def test_a_place_that_is_full_or_gone_is_passed_over_and_without_any_a_line_says_so(short_tmp, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(short_tmp / "gone"))
    with private_folder(_SOCKET_PATH_ROOM) as folder:
        assert folder.parent == Path("/tmp")
    free = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0) if place == "/tmp" else free(place))
    with private_folder(_SOCKET_PATH_ROOM) as folder:
        assert folder.parent == Path("/var/tmp")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    with (
        pytest.raises(
            NoResources, match=r"\(.*gone: No space left.*; /tmp: No space left.*\); set TMPDIR to a usable folder"
        ),
        private_folder(_SOCKET_PATH_ROOM),
    ):
        pass


def test_what_a_killed_sweep_left_is_removed_by_the_next_one_and_nothing_else_is(tmp_path, short_tmp):

    def killed():
        with private_folder(_SOCKET_PATH_ROOM) as folder:
            (folder / "ray").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    (left,) = short_tmp.iterdir()
    (short_tmp / "dsd-lab-mine1234").mkdir()  # no mark of ours
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "held").write_text("")
    (short_tmp / "dsd-lab-abcd1234").symlink_to(tmp_path / "photos")
    with private_folder(_SOCKET_PATH_ROOM) as held, private_folder(_SOCKET_PATH_ROOM) as beside:
        assert not left.exists() and held.exists() and beside.exists()
    assert {path.name for path in short_tmp.iterdir()} == {"dsd-lab-mine1234", "dsd-lab-abcd1234"}
    assert (tmp_path / "photos" / "held").exists()


def test_a_link_that_a_neighbour_puts_in_the_place_of_a_folder_after_it_was_looked_at_is_not_followed(
    tmp_path, short_tmp, monkeypatch
):
    """Everybody can write to the place for temporary files, and the folder that was killed may be anybody's."""
    photos = tmp_path / "photos"
    (photos / "2026").mkdir(parents=True)
    (photos / "2026" / "a.jpg").write_text("mine")
    theirs = short_tmp / "dsd-lab-abcd1234"
    (theirs / "sub").mkdir(parents=True)
    (theirs / "held").write_text("")
    asked = temporary.is_held

    def swapped(*given):
        theirs.rename(short_tmp / "before")
        theirs.symlink_to(photos)
        return asked(*given)

    monkeypatch.setattr(temporary, "is_held", swapped)
    with private_folder(_SOCKET_PATH_ROOM):
        pass
    assert (photos / "2026" / "a.jpg").read_text() == "mine" and theirs.is_symlink()


def test_running_a_finished_sweep_again_runs_nothing_and_does_not_start_ray(swept):
    before = attempts(swept.home, swept.plan)
    program = ["sweep", str(swept.spec), "--home", str(swept.home.root), "--no-tracking", "--json"]
    modules, code, printed, _ = imported(*program)
    answer = json.loads(printed)
    assert code == TRIALS_FAILED  # the failed ones still are
    assert answer == swept.answer
    assert attempts(swept.home, swept.plan) == before
    assert "ray" not in modules


# -- The same sweep, extended ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extended(swept):
    """The sweep with one more seed and an evaluation, run for the variants that do not fail."""
    ids = [t.id for t in swept.plan.trials]
    before = attempts(swept.home, swept.plan), {i: (swept.home.trial(i).status(), events(swept.home, i)) for i in ids}
    content = yaml.safe_load(swept.spec.read_text()) | {"seeds": [0, 1, 2], "evaluate": [EVALUATION]}
    spec = swept.spec.with_name("extended.yaml")
    spec.write_text(yaml.safe_dump(content, sort_keys=False))
    try:
        code, answer = run("sweep", spec, "--home", swept.home.root, "--only", "variant=dsd,control,wild")
    finally:
        spec.unlink()
    after = attempts(swept.home, swept.plan), {i: (swept.home.trial(i).status(), events(swept.home, i)) for i in ids}
    return SimpleNamespace(code=code, answer=answer, before=before, after=after)


def test_adding_a_seed_runs_only_the_new_trials(swept, extended):
    assert extended.code == OK
    assert extended.answer["states"] == {"done": 6, "diverged": 3}
    assert extended.after == extended.before
    new = [e["id"] for e in extended.answer["trials"] if e["name"].endswith("s2")]
    assert [swept.home.trial(i).status().attempt for i in new] == [1, 1, 1]


def test_adding_an_evaluation_evaluates_finished_trials_and_retrains_nothing(swept, extended):
    key = evaluation_id(load_sweep(swept.spec, sets=[f"evaluate=[{EVALUATION}]"]).spec.evaluate[0])
    assert extended.after == extended.before
    evaluated = {e["id"] for e in extended.answer["trials"] if key in swept.home.trial(e["id"]).evaluations()}
    assert evaluated == {e["id"] for e in extended.answer["trials"] if e["name"].startswith(("dsd", "control"))}


def test_an_extended_sweep_is_stored_beside_what_was_there(swept, extended):
    ids = {trial for trial, _, _ in stored_steps(swept.home)}
    assert ids == {e["id"] for e in extended.answer["trials"]} | set(swept.ids("naive") + swept.ids("again"))


# -- What is refused ---------------------------------------------------------------------------------


def test_a_second_sweep_of_one_spec_in_one_home_is_refused(swept, capsys):
    with locked(swept.home.sweep_folder(swept.plan.key) / "lock", wait=False) as held:
        assert held
        assert run("sweep", swept.spec, "--home", swept.home.root)[0] == BAD_INPUT
    assert "is already running" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("cpus", 4096.0)])
def test_a_trial_that_asks_for_more_than_there_is_gets_exit_code_4(field, value, tmp_path, capsys):
    spec = write_spec(tmp_path, base={"resources": {field: value}})
    assert run("sweep", spec, "--home", tmp_path / "home", "--no-tracking")[0] == NO_RESOURCES
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"dsd-lab: resources.{field}: trial 'dsd s0' needs {value:g}, but there are ")
    assert not list((tmp_path / "home" / "trials").glob("*/status.json"))


MACHINES = [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 2.0, "gpus": 1.0}, None),
        ({"cpus": 8.0}, None),
        ({"cpus": 9.0}, "resources.cpus: trial 'dsd s0' needs 9, but there are 8 on the largest machine"),
        (
            {"cpus": 4.0, "gpus": 0.5},
            "resources: trial 'dsd s0' needs 4 CPUs and 0.5 GPUs, more than any single machine",
        ),
    ],
)
def test_a_trial_has_to_fit_on_one_machine_of_a_cluster(asked, told, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.ray, "nodes", lambda: [{"Resources": r, "Alive": True} for r in MACHINES])
    trials = load_sweep(write_spec(tmp_path, base={"resources": asked})).trials
    with contextlib.nullcontext() if told is None else pytest.raises(NoResources, match=re.escape(told)):
        engine._check_resources(trials)


def test_a_worker_whose_gpu_is_lost_takes_no_other_trial(monkeypatch):
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def worker():
        made = engine.TrialWorker.__new__(engine.TrialWorker)
        made._progress, made._decided_at, made._running, made._refused = iter(()), [], trial_running, None
        return made

    assert worker().step() == {"done": True}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert worker().step() == {"done": True}
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(RuntimeError, match="CUDA has failed in this process"):
        worker().step()


def test_a_worker_gives_its_gpu_s_memory_back_before_its_next_trial(monkeypatch):
    done = []
    made = engine.TrialWorker.__new__(engine.TrialWorker)
    made._progress, made._running, made._refused = (i for i in ()), trial_running, None
    monkeypatch.setattr(engine.TrialWorker, "_begin", lambda self, config: done.append("begun"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    made.reset_config({})
    assert done == ["begun"], "a process without a GPU has none to give back"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    made.reset_config({})
    assert done == ["begun", "given back", "begun"]


@pytest.mark.slow
def test_only_selects_trials_and_leaves_the_others_pending(tmp_path):
    spec = write_spec(tmp_path, {"dsd": {}, "control": VARIANTS["control"]}, seeds=[0, 1])
    arguments = ("sweep", spec, "--home", tmp_path / "home", "--no-tracking")
    code, answer = run(*arguments, "--only", "variant=control", "--only", "seed=1")
    assert code == OK
    assert [e["name"] for e in answer["trials"]] == ["control s1"]
    _, status = run("status", "--home", tmp_path / "home")
    assert status["sweeps"][0]["states"] == {"done": 1, "pending": 3}


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure_and_leaves_the_rest_for_later(tmp_path, short_tmp):
    variants = {"broken": FOREIGN, **{f"late{i}": {"data": {"revision": str(i)}} for i in range(4)}}
    spec = write_spec(tmp_path, variants)
    foreign_checkpoint(Home(tmp_path / "home"), load_sweep(spec).only(["variant=broken"]).trials[0])
    arguments = ("sweep", spec, "--home", tmp_path / "home", "--no-tracking")
    code, answer = run(*arguments, "--fail-fast", "--max-concurrent", 1)
    assert code == TRIALS_FAILED
    assert answer["states"] == {"failed": 1, "pending": 4}
    wait_until(lambda: not processes_in(short_tmp), "Ray has ended")


# -- Devices -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_worker_sees_the_devices_and_the_fraction_that_its_trial_asks_for(tmp_path):
    half = {f"half{i}": {"resources": {"gpus": 0.5}, "data": {"revision": str(i)}} for i in range(4)}
    spec = write_spec(tmp_path, {**half, "whole": {"resources": {"gpus": 1.0}, "data": {"revision": "9"}}})
    home, trials = Home(tmp_path / "home"), load_sweep(spec).trials
    run_trials(home, trials, [], cluster={"num_gpus": 2, "num_cpus": 4})
    found = {t.variant: home.trial(t.id).status() for t in trials}
    assert found["whole"].devices in ("0", "1")
    halves = [found[name] for name in half]
    assert {s.devices for s in halves} <= {"0", "1"}
    for device in "01":
        assert len({s.pid for s in halves if s.devices == device}) <= 2


# -- Killed and interrupted --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_runs_on_the_nodes_of_a_running_cluster_and_leaves_it_running(tmp_path):
    spec, home = write_spec(tmp_path, seeds=[0, 1, 2], base=LONG), Home(tmp_path / "home")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        done = start("sweep", spec, "--home", home.root, "--address", cluster.address)
        printed = done.communicate(timeout=DEADLINE)[0]
        assert done.returncode == OK, printed
        assert len(cluster.list_all_nodes()) == 2
    finally:
        cluster.shutdown()
    plan = load_sweep(spec)
    assert [home.trial(t.id).state() for t in plan.trials] == ["done"] * 3
    assert len({home.trial(t.id).status().pid for t in plan.trials}) == 2
    assert stored_steps(home) == spooled_steps(home, [t.id for t in plan.trials])


def test_an_address_where_no_cluster_answers_is_exit_code_4_in_one_line(tmp_path, capsys):
    spec = write_spec(tmp_path)
    code, _ = run("sweep", spec, "--home", tmp_path / "home", "--address", "127.0.0.1:9", "--no-tracking")
    assert code == NO_RESOURCES
    assert "--address 127.0.0.1:9: no Ray cluster answers" in capsys.readouterr().err


@pytest.mark.slow
def test_f8_a_trial_whose_worker_is_told_to_end_is_retried_and_ends_bit_equal(undisturbed, tmp_path):
    """What a node's shutdown sends to all of its processes; killed ones are in test_moments.py."""
    home, victim = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    with nothing_left():
        sweep = start("sweep", undisturbed.spec, "--home", home.root)
        os.kill(wait_until(lambda: running(home, victim, 60), "the trial is under way", sweep), signal.SIGTERM)
        output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == OK, output
    assert home.trial(victim).status().attempt == 2
    assert {t.id: outcome(home, t.id) for t in undisturbed.plan.trials} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, list(undisturbed.outcomes))


@pytest.mark.slow
def test_f15_an_import_that_fails_in_the_workers_alone_fails_the_trial_and_says_so(whole, tmp_path):
    broken = tmp_path / "broken" / "timm"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object file')\n")
    home = Home(tmp_path / "home")
    home.prepare()
    cached_shape(whole.trial.fields, home, training_code())  # so that the driver need not count, and import it, itself
    paths = os.pathsep.join([str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with nothing_left():
        sweep = start("sweep", whole.spec, "--home", home.root, "--no-tracking", env=os.environ | {"PYTHONPATH": paths})
        output, _ = sweep.communicate(timeout=DEADLINE)
    status = home.trial(whole.trial.id).status()
    assert sweep.returncode == TRIALS_FAILED, output
    assert status.state == "failed" and "libcudart.so.99" in status.error and "\n" not in status.error
    assert "Traceback" not in output and "libcudart.so.99" in output


@pytest.mark.slow
def test_a_trial_whose_workers_keep_dying_fails_and_says_so(undisturbed, tmp_path):
    home, (victim, other) = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    sweep = start("sweep", undisturbed.spec, "--home", home.root, "--no-tracking")
    killed = set()
    for _ in range(3):
        pid = wait_until(lambda: {running(home, victim, 10)} - killed - {0}, "a worker has it", sweep).pop()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == TRIALS_FAILED, output
    status = home.trial(victim).status()
    assert status.state == "failed" and status.error.startswith("the worker died 3 times")
    assert home.trial(other).state() == "done"  # it ended first, and the failure is not taken for its own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_f2_and_f8_an_interrupted_sweep_leaves_no_process_and_ends_bit_equal_when_run_again(
    sent, code, undisturbed, tmp_path, short_tmp
):
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    with nothing_left():
        sweep = start("sweep", undisturbed.spec, "--home", home.root, "--max-concurrent", 1)
        wait_until(lambda: running(home, ids[0], 60), "the first trial is under way", sweep)
        assert run("sweep", undisturbed.spec, "--home", home.root)[0] == BAD_INPUT  # it is running
        if sent == signal.SIGINT:
            os.killpg(sweep.pid, sent)  # as a terminal does
        else:
            sweep.send_signal(sent)
        began = time.monotonic()
        output, _ = sweep.communicate(timeout=DEADLINE)
        assert sweep.returncode == code, output
        # The kernel frees the lock of a trial a moment after its process has left /proc.
        interrupted = ["interrupted", "pending"]
        wait_until(lambda: [home.trial(i).state() for i in ids] == interrupted, "the trial is interrupted")
        assert sent != signal.SIGKILL or time.monotonic() - began < WORKERS_DIE
        if sent != signal.SIGKILL:
            assert list(short_tmp.iterdir()) == []
        assert run("sweep", undisturbed.spec, "--home", home.root)[0] == OK
        assert list(short_tmp.iterdir()) == [], "what a killed sweep left is removed by the next one"
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, ids)
