"""Two at once in one home folder, many at once in one sweep, several nodes, and housekeeping beside them: each trial once."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from leftovers import nothing_left
from ray.cluster_utils import Cluster
from sweeping import (
    DEADLINE,
    VARIANTS,
    events,
    free_port,
    mlflow_server,
    outcome,
    run,
    running,
    spooled_steps,
    start,
    stored_steps,
    train_here,
    wait_until,
    write_spec,
)

from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def renamed(spec: Path, folder: Path, name: str, **variants) -> Path:
    """A spec of another name with the variants of this one, and more."""
    folder.mkdir(exist_ok=True)
    content = yaml.safe_load(spec.read_text())
    (folder / "spec.yaml").write_text(
        yaml.safe_dump(content | {"name": name, "variants": content["variants"] | variants}, sort_keys=False)
    )
    return folder / "spec.yaml"


def attempts(home: Home, ids: list[str]) -> list[int]:
    return [home.trial(i).status().attempt for i in ids]


def test_f9_two_sweeps_that_share_trials_share_the_work_and_one_sweep_twice_is_refused(undisturbed, tmp_path, capsys):
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    other = renamed(undisturbed.spec, tmp_path / "other", "other", control=VARIANTS["control"])
    everything = [t.id for t in load_sweep(other).trials]
    first = start("sweep", undisturbed.spec, "--home", home.root)
    worker = wait_until(lambda: running(home, ids[0], 20), "the shared trial is under way", first)
    os.kill(worker, signal.SIGSTOP)  # until the second sweep has come to it
    second = start("sweep", other, "--home", home.root, "--json")
    assert run("sweep", undisturbed.spec, "--home", home.root)[0] == BAD_INPUT
    assert "is already running" in capsys.readouterr().err
    wait_until(lambda: home.trial(everything[2]).state() == "done", "the second has done what is its own", second)
    os.kill(worker, signal.SIGCONT)
    # Garbage is collected meanwhile: nothing that either needs goes.
    while first.poll() is None:
        assert run("gc", "--home", home.root, "--yes")[0] == OK
    for sweep in (first, second):
        output, _ = sweep.communicate(timeout=DEADLINE)
        assert sweep.returncode == OK, output
    assert json.loads(output[output.index("{\n") :])["states"] == {"done": 3}  # it waited for the one it did not train
    assert attempts(home, everything) == [1, 1, 1]
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, everything)


def test_f9_three_sweeps_that_begin_at_once_on_a_fresh_home_and_store_do_everything_once(undisturbed, tmp_path):
    """Two of one spec, of which one is refused, and one of another with trials of its own and shared ones."""
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    other = renamed(undisturbed.spec, tmp_path / "other", "other", control=VARIANTS["control"])
    everything = [t.id for t in load_sweep(other).trials]
    specs = (undisturbed.spec, undisturbed.spec, other)
    with nothing_left():
        sweeps = [start("sweep", spec, "--home", home.root) for spec in specs]
        told = [sweep.communicate(timeout=DEADLINE)[0] for sweep in sweeps]
    codes = [sweep.returncode for sweep in sweeps]
    assert sorted(codes[:2]) == [OK, BAD_INPUT] and codes[2] == OK, told
    assert "is already running" in told[codes.index(BAD_INPUT)]
    assert attempts(home, everything) == [1, 1, 1]
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, everything)


def test_a_sweep_takes_over_a_trial_whose_other_sweep_is_killed(undisturbed, tmp_path):
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    other = renamed(undisturbed.spec, tmp_path / "other", "other")
    first = start("sweep", undisturbed.spec, "--home", home.root, "--no-tracking", "--only", "variant=dsd")
    worker = wait_until(lambda: running(home, trial, 20), "the shared trial is under way", first)
    os.kill(worker, signal.SIGSTOP)
    second = start("sweep", other, "--home", home.root, "--no-tracking")
    naive = undisturbed.plan.trials[1].id
    wait_until(lambda: home.trial(naive).state() == "done", "the second has done what is its own", second)
    first.kill()
    os.kill(worker, signal.SIGKILL)
    first.communicate(timeout=DEADLINE)
    output, _ = second.communicate(timeout=DEADLINE)
    assert second.returncode == OK, output
    assert {t.id: outcome(home, t.id) for t in undisturbed.plan.trials} == undisturbed.outcomes
    assert attempts(home, [trial]) == [2]


def test_f24_trials_side_by_side_equal_trials_one_after_the_other(tmp_path):
    variants = {k: VARIANTS[k] for k in ("dsd", "control", "naive", "wild")}
    spec = write_spec(tmp_path, variants, seeds=[0, 1], base={"resources": {"cpus": 0.125}})
    alone, together = Home(tmp_path / "alone"), Home(tmp_path / "together")
    ids = [t.id for t in train_here(alone, spec).trials]
    assert run("sweep", spec, "--home", together.root, "--no-tracking", "--max-concurrent", 8)[0] == OK
    # Workers start one after the other, and the first may have done most of these short trials by then.
    assert len({together.trial(i).status().pid for i in ids}) >= 2
    states = [together.trial(i).state() for i in ids]
    assert states == [alone.trial(i).state() for i in ids] and set(states) == {"done", "diverged"}
    assert [events(together, i) for i in ids] == [events(alone, i) for i in ids]
    finished = [i for i in ids if together.trial(i).state() == "done"]
    assert [outcome(together, i) for i in finished] == [outcome(alone, i) for i in finished]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_node_of_a_cluster_that_dies_in_mid_sweep_loses_nothing_and_nothing_runs_twice(undisturbed, tmp_path):
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.shutdown)
        uri = stack.enter_context(mlflow_server(tmp_path / "served", free_port()))
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        arguments = ("--home", home.root, "--address", cluster.address, "--tracking-uri", uri)
        sweep = start("sweep", undisturbed.spec, *arguments)
        worker = wait_until(lambda: running(home, ids[0], 40), "the long trial is under way", sweep)
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        cluster.remove_node(raylets[parent(worker)], allow_graceful=False)
        output, _ = sweep.communicate(timeout=DEADLINE)
        assert sweep.returncode == OK, output
        assert not Path(f"/proc/{worker}").exists() or parent(worker) != os.getpid()
    assert attempts(home, ids) == [2, 1]
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    assert stored_steps(Home(tmp_path / "served")) == spooled_steps(home, ids)
