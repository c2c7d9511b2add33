"""A cluster of several machines: a trial on two of them, one that dies, one that is cut off, and a head that comes back."""

import json

import pytest
from machines import machines
from sweeping import DEADLINE, LONG, outcome, running, train_here, wait_until, write_spec

from dsd_lab.errors import NO_RESOURCES, OK, TRIALS_FAILED
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RESERVED = """
import json
from ray.util import placement_group_table
groups = [group["state"] for group in placement_group_table().values()]
print(json.dumps([ray.cluster_resources().get("CPU"), ray.available_resources().get("CPU"), groups]))
"""


@pytest.fixture
def shared(tmp_path):
    """A spec of one trial of two processes, and what it comes to where nothing disturbs it."""
    spec = write_spec(
        tmp_path, {"dsd": LONG | {"training": {"steps": 400, "batch_size": 8}}}, base={"resources": {"processes": 2}}
    )
    whole = Home(tmp_path / "whole")
    (trial,) = train_here(whole, spec).trials
    return spec, trial.id, outcome(whole, trial.id)


def test_a_trial_on_two_machines_goes_on_where_one_dies_and_where_one_is_cut_off(shared, tmp_path):
    spec, trial, whole = shared
    home = Home(tmp_path / "home")
    with machines(5) as cluster:
        cluster.start(0, cpus=0)
        for number in (1, 2, 3, 4):
            cluster.start(number)
        sweep = cluster.lab(0, "sweep", spec, "--address", cluster.ray, "--home", home.root, "--no-tracking")

        def followed(attempt):
            """The machine of the process that follows, once the trial is well under way in this attempt."""
            if home.trial(trial).status().attempt != attempt or not running(home, trial, 20):
                return 0
            leads = cluster.of(home.trial(trial).status().pid)
            found = [n for n in (1, 2, 3, 4) if n != leads and cluster.running(n, "ray::Follower.follow")]
            return found[0] if leads > 0 and found else 0

        cluster.kill(wait_until(lambda: followed(1), "a trial spans two machines", sweep))
        cluster.cut_off(wait_until(lambda: followed(2), "it was taken up on others", sweep))
        output = sweep.communicate(timeout=DEADLINE)[0]
        assert sweep.returncode == OK, output
        cpus, free, groups = json.loads(cluster.ask(RESERVED))
        assert cpus == free == 2 and set(groups) == {"REMOVED"}
        # The machine that was cut off ends its processes by itself, once it has missed the head for long enough.
        left = lambda: [n for n in range(5) for name in ("ray::Follower", "ray::Resource") if cluster.running(n, name)]  # noqa: E731
        wait_until(lambda: not left(), "no process of the trial is left on any machine")
    assert home.trial(trial).status().attempt == 3
    assert outcome(home, trial) == whole


def test_a_machine_that_does_not_see_the_home_refuses_its_trials_by_name(tmp_path):
    spec, home = write_spec(tmp_path), Home(tmp_path / "shared" / "home")
    home.root.parent.mkdir()
    (trial,) = load_sweep(spec).trials
    with machines(2) as cluster:
        cluster.start(0, cpus=0)
        cluster.start(1, hidden=home.root.parent)
        sweep = cluster.lab(0, "sweep", spec, "--address", cluster.ray, "--home", home.root, "--no-tracking")
        output = sweep.communicate(timeout=DEADLINE)[0]
        assert sweep.returncode == TRIALS_FAILED and "Traceback" not in output, output
        assert f"does not see the home folder {home.root}" in output
    folder = home.trial(trial.id)
    assert folder.state() == "failed" and folder.status().cause == "input" and not folder.spool.exists()


def test_a_sweep_whose_head_dies_ends_in_a_line_and_the_same_command_goes_on_once_it_is_back(undisturbed, tmp_path):
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    with machines(2) as cluster:
        arguments = ("sweep", undisturbed.spec, "--address", cluster.ray, "--home", home.root, "--no-tracking")
        cluster.start(0, cpus=0)
        cluster.start(1)
        sweep = cluster.lab(1, *arguments)
        wait_until(lambda: running(home, ids[0], 40), "the long trial is under way", sweep)
        cluster.kill(0)
        output = sweep.communicate(timeout=DEADLINE)[0]
        assert sweep.returncode == NO_RESOURCES and "Traceback" not in output, output
        (line,) = [line for line in output.splitlines() if line.startswith("dsd-lab: ")]
        assert "died" in line and "the same command" in line
        cluster.kill(1)
        cluster.start(0, cpus=0)
        cluster.start(1)
        again = cluster.lab(1, *arguments)
        output = again.communicate(timeout=DEADLINE)[0]
        assert again.returncode == OK, output
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
