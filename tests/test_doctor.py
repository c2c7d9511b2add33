"""`dsd-lab doctor`: it finds what is wrong, says it in one line, and closes only runs that nobody works on."""

import platform
import shutil
import sqlite3

import pytest
from sweeping import VARIANTS, run, train_here, write_spec

from dsd_lab.cli.doctor import check_packages, required
from dsd_lab.cli.main import main
from dsd_lab.errors import NO_RESOURCES, OK
from dsd_lab.files.locks import locked
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.store.mlflow_store import Store


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A home with two finished trials in its store."""
    folder = tmp_path_factory.mktemp("doctor")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control")}))
    Store(home).sync(manifest_of(plan))
    return home.root, plan


@pytest.fixture
def home(stored, tmp_path):
    shutil.copytree(stored[0], tmp_path / "home")
    return Home(tmp_path / "home")


def states(home):
    with sqlite3.connect(home.root / "mlflow.db") as database:
        return dict(database.execute("select name, status from runs").fetchall())


def say_running(home):
    with sqlite3.connect(home.root / "mlflow.db") as database:
        database.execute("update runs set status = 'RUNNING', end_time = null")


def doctor(home, *more):
    code, answer = run("doctor", "--home", home.root, *more)
    assert (code == OK) == answer["ok"] == all(f["ok"] for f in answer["findings"])
    return code, {f["check"]: f["text"] for f in answer["findings"]}, answer["findings"]


def test_a_machine_on_which_everything_is_in_order_is_exit_code_0(home):
    code, found, _ = doctor(home)
    assert code == OK
    assert set(found) == {"python", "packages", "devices", "threads", "home", "disk", "store", "runs"}
    assert platform.python_version() in found["python"] and "GiB free" in found["disk"]


def test_it_makes_neither_a_home_folder_nor_a_store(tmp_path):
    code, found, _ = doctor(Home(tmp_path / "none"))
    assert code == OK and "first sweep" in found["home"] and "first sweep" in found["store"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    assert doctor(Home(tmp_path / "empty"))[0] == OK
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_is_asked_for_is_what_pyproject_says():
    python, packages = required()
    assert python.startswith(">=3.11") and any(p.startswith("mlflow") for p in packages)


def test_a_package_that_is_missing_or_of_another_version_is_named_with_what_would_be_right():
    wanted = ["numpy>=1", "numpy<1", "no-such-package-here>=2", "nothing; python_version < '3'"]
    found = [f for f in check_packages(">=3.99", wanted) if not f.ok]
    assert [f.check for f in found] == ["python", "packages", "packages"]
    assert "pip install 'numpy<1'" in found[1].text
    assert "no-such-package-here is not installed" in found[2].text


def test_orphaned_runs_are_named_by_a_dry_run_then_closed_and_the_next_report_gives_them_their_state_back(home, stored):
    say_running(home)
    code, found, _ = doctor(home, "--dry-run")
    assert code == NO_RESOURCES and found["runs"].startswith("3 runs")
    assert set(states(home).values()) == {"RUNNING"}
    code, found, _ = doctor(home)
    assert code == OK and "closed as KILLED" in found["runs"]
    assert states(home) == {"tiny": "KILLED", "dsd s0": "KILLED", "control s0": "KILLED"}
    assert "no orphaned runs" in doctor(home)[1]["runs"]
    Store(home).sync(manifest_of(stored[1]))
    assert set(states(home).values()) == {"FINISHED"}


def test_a_run_that_was_closed_follows_its_trial_when_that_goes_on(home, stored):
    plan = stored[1]
    home.trial(plan.trials[0].id).write_status(state="running")  # as after a power cut
    store = Store(home)
    store.sync(manifest_of(plan))
    say_running(home)
    doctor(home)
    home.trial(plan.trials[0].id).write_status(state="done")
    Store(home).sync(manifest_of(plan))
    assert states(home)["dsd s0"] == "FINISHED"


def test_a_run_whose_trial_or_sweep_somebody_holds_stays_running(home, stored):
    say_running(home)
    with home.trial(stored[1].trials[0].id).lock() as held:
        assert held
        doctor(home)
    assert states(home) == {"tiny": "KILLED", "dsd s0": "RUNNING", "control s0": "KILLED"}
    say_running(home)
    with locked(home.sweep_folder("tiny") / "lock", wait=False) as held:
        assert held
        assert "no orphaned runs" in doctor(home)[1]["runs"]
    assert set(states(home).values()) == {"RUNNING"}


def test_runs_of_a_home_elsewhere_in_a_shared_store_are_left_alone(home, tmp_path):
    say_running(home)
    other = Home(tmp_path / "other")
    other.prepare()
    assert "no orphaned runs" in doctor(other, "--tracking-uri", f"sqlite:///{home.root / 'mlflow.db'}")[1]["runs"]
    assert set(states(home).values()) == {"RUNNING"}


def test_a_store_of_another_schema_and_a_damaged_manifest_are_findings_of_one_line(home, capsys):
    with sqlite3.connect(home.root / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'cfd24bdc0731'")
    (home.sweep_folder("tiny") / "manifest.json").write_text("{")
    assert main(["doctor", "--home", str(home.root)]) == NO_RESOURCES
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 2
    assert "manifest.json is damaged" in problems[0] and "out-of-date database schema" in problems[1]


def test_more_threads_than_cores_are_a_finding(home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    code, found, _ = doctor(home)
    assert code == NO_RESOURCES and "more threads than cores" in found["threads"]
