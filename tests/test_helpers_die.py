"""A process that a sweep started for itself is killed: the sweep says so in one line, and the same command goes on."""

import psutil
import pytest
from sweeping import DEADLINE, LONG, spooled_steps, start, stored_steps, wait_until, write_spec

from dsd_lab.errors import NO_RESOURCES, OK
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def begun(tmp_path):
    """A sweep that has saved a checkpoint; with its command, its home and its trial."""
    spec, home = write_spec(tmp_path, {"dsd": LONG}), Home(tmp_path / "home")
    (trial,) = load_sweep(spec).trials
    command = ("sweep", spec, "--home", home.root)
    driver = start(*command)
    wait_until(lambda: list(home.trial(trial.id).checkpoints.glob("step-*")), "a checkpoint is there", driver)
    return driver, command, home, trial.id


def kill(driver, named):
    """Kill the one process of a sweep that has this in its command line."""
    (found,) = [p for p in psutil.Process(driver.pid).children() if named in " ".join(p.cmdline()[:4])]
    found.kill()


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_sweep_whose_ray_has_died_ends_in_a_line_and_the_same_command_goes_on(name, tmp_path):
    driver, command, home, trial = begun(tmp_path)
    kill(driver, f"/{name}")
    output = driver.communicate(timeout=DEADLINE)[0]
    assert driver.returncode == NO_RESOURCES and "Traceback" not in output and "state-dump" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("dsd-lab: ")]
    assert f"Ray's process {name} died" in line and "the same command resumes" in line
    again = start(*command)
    output = again.communicate(timeout=DEADLINE)[0]
    assert again.returncode == OK and home.trial(trial).state() == "done", output
    assert stored_steps(home) == spooled_steps(home, [trial])


def test_a_sweep_whose_uploader_has_died_trains_on_and_says_that_the_store_is_behind(tmp_path):
    driver, command, home, trial = begun(tmp_path)
    kill(driver, "dsd_lab.store.uploader")
    output = driver.communicate(timeout=DEADLINE)[0]
    assert driver.returncode == OK and home.trial(trial).state() == "done", output
    assert output.count("the store is incomplete; nothing is lost") == 1
    assert start(*command).wait(DEADLINE) == OK
    assert stored_steps(home) == spooled_steps(home, [trial])
