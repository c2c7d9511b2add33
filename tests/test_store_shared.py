"""A store that is old, large or shared, and a home that was moved: every run is found again, and nobody else's is touched."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
from sweeping import (
    DEADLINE,
    LONG,
    VARIANTS,
    asking_for_password,
    free_port,
    mlflow_server,
    spooled_steps,
    start,
    stored_steps,
    train_here,
    wait_until,
    write_spec,
)

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, BadInput, NoResources
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.uri import refuse_unsuitable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with two finished trials and no store; copied by every test."""
    folder = tmp_path_factory.mktemp("trained")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control")}))
    with contextlib.suppress(AttributeError):
        assert home.id
    return home.root, manifest_of(plan), [t.id for t in plan.trials]


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "home")
    return Home(tmp_path / "home")


def other_home(trained, place):
    """A home with the same trials, as somebody else has trained them."""
    shutil.copytree(trained[0], place)
    (place / "dsd-lab-home.json").unlink(missing_ok=True)
    for folder in (place / "trials").iterdir():
        status = Home(place).trial(folder.name).status()
        Home(place).trial(folder.name).write_status(started=status.started + 100)
    return Home(place)


def rows(database, query):
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return opened.execute(query).fetchall()


def runs_of(home, active=True):
    stage = "active" if active else "deleted"
    return rows(home.root / "mlflow.db", f"select name, run_uuid from runs where lifecycle_stage = '{stage}'")


def assert_all_there(home, trained, tmp_path):
    """Every run once, with every metric and artifact."""
    assert sorted(name for name, _ in runs_of(home)) == ["control s0", "dsd s0", "tiny"]
    assert stored_steps(home) == spooled_steps(home, trained[2])
    for found in Store(home).read(trained[1], tmp_path / "scratch"):
        assert found.tags["dsd.state"] == "done"
        assert {"history.parquet", "trial.json", "final"} <= {path.name for path in found.folder.iterdir()}


# -- Old and large -----------------------------------------------------------------------------------


def test_behind_a_thousand_other_experiments_and_runs_every_run_is_found_again(home, trained, tmp_path):
    _, manifest, _ = trained
    Store(home).sync(manifest)
    with sqlite3.connect(home.root / "mlflow.db") as database:
        later = 2**42
        database.executemany(
            "insert into experiments (experiment_id, name, lifecycle_stage, creation_time, last_update_time)"
            " values (?, ?, 'active', ?, ?)",
            [(n, f"other {n}", later, later) for n in range(10_000, 11_100)],
        )
        columns = [row[1] for row in database.execute("pragma table_info(runs)")]
        wanted = ", ".join(columns)
        taken = ", ".join({"run_uuid": "?", "name": "?", "start_time": "1"}.get(c, c) for c in columns)
        first = database.execute("select run_uuid from runs where name = 'tiny'").fetchone()[0]
        for n in range(1_100):
            query = f"insert into runs ({wanted}) select {taken} from runs where run_uuid = '{first}'"
            database.execute(query, (f"{n:032d}", f"other {n}"))
        tags = [("dsd.kind", "trial", f"{n:032d}") for n in range(1_100)]
        tags += [("dsd.trial", "0" * 12, f"{n:032d}") for n in range(1_100)]
        tags += [("dsd.code", "x", f"{n:032d}") for n in range(1_100)]
        database.executemany("insert into tags (key, value, run_uuid) values (?, ?, ?)", tags)
    assert Store(home).sync(manifest) == 0
    other = manifest.changed(name="second", key="second")
    Store(home).sync(other)
    Store(home).sync(other)
    names = [name for name, _ in runs_of(home) if not name.startswith("other")]
    assert sorted(names) == ["control s0", "control s0", "dsd s0", "dsd s0", "second", "tiny"]  # two are pointers
    assert stored_steps(home) == spooled_steps(home, trained[2])


def test_an_experiment_that_was_deleted_or_renamed_is_found_again(home, trained, tmp_path, capsys):
    _, manifest, _ = trained
    store = Store(home)
    store.sync(manifest)
    experiment = store.client.get_experiment_by_name("tiny").experiment_id
    store.client.delete_experiment(experiment)
    Store(home).sync(manifest)
    assert capsys.readouterr().err.count("'tiny' was deleted in the store; it is restored") == 1
    assert_all_there(home, trained, tmp_path)
    store.client.rename_experiment(experiment, "better name")
    Store(home).sync(manifest)
    assert store.client.get_experiment_by_name("tiny") is None
    assert_all_there(home, trained, tmp_path)


def test_an_experiment_of_the_same_name_that_belongs_to_others_is_left_alone(home, trained, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    store = Store(home, uri)
    theirs = store.client.create_experiment("tiny", tags={"team": "vision"})
    for _ in range(2):
        Store(home, uri).sync(trained[1])
    assert capsys.readouterr().err.count("is foreign; this home's runs go to") == 1
    assert len(store.client.search_runs([theirs])) == 0
    mine = store.client.get_experiment_by_name(f"tiny-{home.id[:8]}")
    assert len(store.client.search_runs([mine.experiment_id])) == 3


@pytest.mark.parametrize("forever", [False, True], ids=["deleted", "deleted for good"])
@pytest.mark.parametrize("which", ["tiny", "dsd s0"])
def test_a_run_that_was_deleted_is_restored_or_made_anew(which, forever, home, trained, tmp_path, capsys):
    _, manifest, _ = trained
    store = Store(home)
    store.sync(manifest)
    run = dict(runs_of(home))[which]
    store.client.delete_run(run)
    if forever:  # as `mlflow gc` does
        with sqlite3.connect(home.root / "mlflow.db") as database:
            for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
                database.execute(f"delete from {table} where run_uuid = '{run}'")
    capsys.readouterr()
    Store(home).sync(manifest)
    Store(home).sync(manifest)
    told = f"the run '{which}' was deleted in the store; it is restored"
    assert capsys.readouterr().err.count(told) == (0 if forever else 1)
    assert_all_there(home, trained, tmp_path)
    parents = rows(home.root / "mlflow.db", "select distinct value from tags where key = 'mlflow.parentRunId'")
    assert parents == [(dict(runs_of(home))["tiny"],)]
    assert runs_of(home, active=False) == []


@pytest.mark.parametrize("gone", ["history.parquet", "trial.json", "final", "."])
def test_artifacts_that_are_gone_are_written_anew_and_that_is_told(gone, home, trained, tmp_path, capsys):
    _, manifest, _ = trained
    store = Store(home)
    store.sync(manifest)
    (place,) = rows(home.root / "mlflow.db", "select artifact_uri from runs where name = 'dsd s0'")
    folder = Path(place[0].removeprefix("file://"))
    before = {p.relative_to(folder).name.split("%")[0].split("+")[0] for p in folder.rglob("*") if p.is_file()}
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    for _ in range(2):
        Store(home).sync(manifest)
    assert capsys.readouterr().err.count("the artifacts of 'dsd s0' are missing in the store") == 1
    assert {p.relative_to(folder).name.split("%")[0].split("+")[0] for p in folder.rglob("*") if p.is_file()} == before
    assert_all_there(home, trained, tmp_path)


@pytest.mark.parametrize("left", [b"", b"\x89PNG\r\n\x1a\nhalf"], ids=["empty", "torn"])
def test_a_damaged_picture_keeps_neither_its_trial_nor_later_ones_from_being_stored(left, home, trained, tmp_path):
    for picture in home.trial(trained[2][0]).images.glob("*-000000012.png"):
        picture.write_bytes(left)
    Store(home).sync(trained[1])
    assert_all_there(home, trained, tmp_path)


def test_a_damaged_spool_keeps_no_later_trial_from_being_stored(home, trained):
    home.trial(trained[2][0]).spool.write_bytes(b"{damaged\n")
    store = Store(home)
    with pytest.raises(BadInput, match="is damaged"):
        store.sync(trained[1])
    assert stored_steps(home) == spooled_steps(home, trained[2][1:])


# -- Shared ------------------------------------------------------------------------------------------


def test_two_homes_in_one_store_have_runs_of_their_own_and_leave_each_others_alone(home, trained, tmp_path):
    _, manifest, ids = trained
    other = other_home(trained, tmp_path / "other")
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    Store(home, uri).sync(manifest)
    mine = rows(tmp_path / "shared.db", "select run_uuid, status, end_time, start_time, artifact_uri from runs")
    Store(home, uri).client.update_run(mine[0][0], "RUNNING")
    mine = rows(tmp_path / "shared.db", "select run_uuid, status, end_time, start_time, artifact_uri from runs")
    for trial in ids:
        other.trial(trial).write_status(state="failed", error="here it failed")
    Store(other, uri).sync(manifest)
    assert Store(other, uri).close_orphans() == []
    everything = rows(tmp_path / "shared.db", "select run_uuid, status, end_time, start_time, artifact_uri from runs")
    assert len(everything) == 2 * len(mine) and set(mine) <= set(everything)
    assert [s.tags["dsd.state"] for s in Store(other, uri).read(manifest, tmp_path)] == ["failed", "failed"]
    assert [s.tags["dsd.state"] for s in Store(home, uri).read(manifest, tmp_path)] == ["done", "done"]
    assert Store(home, uri).close_orphans() != []  # its own are


@pytest.mark.parametrize("left", [None, b"", b'{"format": 1, "ho'], ids=["removed", "empty", "torn"])
@pytest.mark.parametrize("name", ["dsd-lab-home.json", "mlflow-runs.json"])
def test_a_home_whose_mark_or_record_of_runs_is_lost_finds_its_runs_again(name, left, home, trained, tmp_path):
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    Store(home, uri).sync(trained[1])
    before = rows(tmp_path / "shared.db", "select run_uuid from runs")
    (home.root / name).unlink() if left is None else (home.root / name).write_bytes(left)
    assert Store(home, uri).sync(trained[1]) == 0
    assert rows(tmp_path / "shared.db", "select run_uuid from runs") == before


# -- Moved -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_elsewhere_reports_and_goes_on_and_writes_nothing_to_the_old_place(how, home, trained, tmp_path):
    _, manifest, _ = trained
    Store(home).sync(manifest)
    new = Home(tmp_path / "new place é" / "home")
    new.root.parent.mkdir()
    before = {p: p.stat().st_mtime_ns for p in home.root.rglob("*") if p.is_file()}
    (shutil.move if how == "moved" else shutil.copytree)(home.root, new.root)
    store = Store(new)
    assert store.sync(manifest) == 0
    for found in store.read(manifest, tmp_path / "scratch"):
        assert found.folder.is_relative_to(new.root) and (found.folder / "history.parquet").exists()
    for trial in trained[2]:
        new.trial(trial).write_status(error="changed", attempt=7)
    Store(new).sync(manifest.changed(name="second", key="second"))
    Store(new).sync(manifest)
    places = rows(new.root / "mlflow.db", "select artifact_uri from runs")
    assert all(place.startswith(new.root.as_uri()) for (place,) in places) and len(places) == 6
    if how == "moved":
        assert not home.root.exists()
    else:
        assert {p: p.stat().st_mtime_ns for p in home.root.rglob("*") if p.is_file()} == before


# -- Unsuitable --------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "ftp://somewhere/store"])
def test_a_store_of_files_is_refused_with_the_remedy_before_anything_is_trained(uri, tmp_path, capsys):
    spec = write_spec(tmp_path)
    for verb in (["sweep", spec], ["train", spec, "--variant", "dsd"]):
        code = main([*map(str, verb), "--home", str(tmp_path / "home"), "--tracking-uri", uri])
        assert code == BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--tracking-uri {uri}: is not a store that sweeps can use; use a database (sqlite:///" in line
    assert not (tmp_path / "home" / "trials").exists()


def test_a_dead_address_is_refused_with_the_remedy_before_anything_is_trained(tmp_path, capsys):
    spec = write_spec(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
        code = main(["sweep", str(spec), "--home", str(tmp_path / "home"), "--tracking-uri", dead])
    assert code == NO_RESOURCES
    (line,) = capsys.readouterr().err.splitlines()
    assert "no answer" in line and "--no-tracking" in line and "secret" not in line
    assert not (tmp_path / "home" / "trials").exists()


def test_a_database_whose_folder_or_driver_is_missing_is_refused(tmp_path, monkeypatch):
    with pytest.raises(NoResources, match="no such folder"):
        refuse_unsuitable(f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}", tmp_path)
    with pytest.raises(NoResources, match="nosuchdriver is not installed"):
        refuse_unsuitable("postgresql+nosuchdriver://me:secret@127.0.0.1/runs", tmp_path)
    refuse_unsuitable(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    refuse_unsuitable(None, tmp_path)


# -- Servers -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_loses_artifacts_and_a_read_writes_them_anew(home, trained, tmp_path, capsys):
    with mlflow_server(tmp_path / "served", free_port()) as uri:
        Store(home, uri).sync(trained[1])
        shutil.rmtree(tmp_path / "served" / "files")
        found = Store(home, uri).read(trained[1], tmp_path / "scratch")
        assert all((trial.folder / "history.parquet").exists() for trial in found)
    assert capsys.readouterr().err.count("are missing in the store; they are written again") == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_restarted_in_mid_sweep_ends_with_everything_once(tmp_path):
    spec, home, served, port = (
        write_spec(tmp_path, {"dsd": LONG}),
        Home(tmp_path / "home"),
        tmp_path / "served",
        free_port(),
    )
    with mlflow_server(served, port) as uri:
        sweep = start("sweep", spec, "--home", home.root, "--tracking-uri", uri)
        wait_until(lambda: _held(served), "the server holds metrics", sweep)
    with mlflow_server(served, port):
        output, _ = sweep.communicate(timeout=DEADLINE)
        assert sweep.returncode == 0, output
        ids = home.manifests()["tiny"].ids
        Store(home, uri).sync(home.manifests()["tiny"])
    assert stored_steps(Home(served)) == spooled_steps(home, ids)


@contextlib.contextmanager
def postgresql():
    """A PostgreSQL of its own on loopback, which asks for a password; yields its address.

    It does not run as root; root starts it as the user that Debian's package makes.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL (Debian's package `postgresql`) or psycopg2 is not installed")
    who = {}
    if os.getuid() == 0:
        try:
            who = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid, "extra_groups": []}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="dsd-pg-", dir="/tmp") as place:  # pytest's folders are root's alone
        if who:
            shutil.chown(place, "postgres", "postgres")
        binaries, data, port, secret = programs[-1].parent, f"{place}/data", free_port(), Path(place) / "secret"
        secret.write_text("pass word")
        secret.chmod(0o644)
        asked = ["-A", "scram-sha-256", "-U", "me", "--pwfile", str(secret), "-E", "UTF8", "--locale", "C.UTF-8"]
        options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"

        def control(*arguments):
            done = subprocess.run(
                [binaries / "pg_ctl", "-D", data, "-w", *arguments], **who, cwd="/", stdout=subprocess.DEVNULL
            )
            assert done.returncode == 0, Path(place, "log").read_text()

        subprocess.run([binaries / "initdb", "-D", data, *asked], **who, cwd="/", check=True, capture_output=True)
        control("-o", options, "-l", f"{place}/log", "start")
        try:
            yield f"postgresql://me:pass%20word@127.0.0.1:{port}/postgres", control
        finally:
            control("-m", "fast", "stop")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_postgresql_store_holds_everything_once_and_is_found_again(home, trained, tmp_path, capsys):
    with postgresql() as (uri, control):
        assert Store(home, uri).sync(trained[1]) > 0
        assert Store(home, uri).sync(trained[1]) == 0
        store = Store(home, uri)
        control("-m", "fast", "restart")  # the connections of a pool are dead then
        for trial in trained[2]:
            home.trial(trial).write_status(attempt=7)
        with contextlib.suppress(StoreUnavailable):  # at most once
            store.sync(trained[1])
        assert store.sync(trained[1]) == 0
        assert [s.tags["dsd.state"] for s in store.read(trained[1], tmp_path)] == ["done", "done"]
        assert len(store.ours.runs("tags.`dsd.kind` = 'trial'")) == 2
        for trial, entries in _metrics(store).items():
            assert entries == [(n, s) for i, n, s in spooled_steps(home, trained[2]) if i == trial]
        with pytest.raises(StoreUnavailable) as refused:
            Store(home, uri.replace("pass%20word", "s3cret")).sync(trained[1])
        assert "password authentication failed" in str(refused.value) and "s3cret" not in str(refused.value)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        Store(home, uri).sync(trained[1])
    assert "Traceback" not in capsys.readouterr().err


def _metrics(store):
    """(metric, step) that the store has of each trial, repeated ones too."""
    return {
        run.data.tags["dsd.trial"]: sorted(
            (name, entry.step)
            for name in run.data.metrics
            for entry in store.client.get_metric_history(run.info.run_id, name)
        )
        for run in store.ours.runs("tags.`dsd.kind` = 'trial'")
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_asks_for_a_password_is_refused_before_training_and_stores_everything_with_it(
    home, trained, tmp_path, monkeypatch, capsys
):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec, served = write_spec(tmp_path), tmp_path / "served"
    with mlflow_server(served, free_port()) as uri, asking_for_password(uri, "me", "pass word") as guarded:
        for wrong in (guarded, guarded.replace("//", "//me:s3cret@")):
            assert main(["sweep", str(spec), "--home", str(tmp_path / "new"), "--tracking-uri", wrong]) == NO_RESOURCES
            (line,) = capsys.readouterr().err.splitlines()
            assert "access denied; set MLFLOW_TRACKING_USERNAME" in line and "s3cret" not in line
            with pytest.raises(StoreUnavailable) as refused:
                Store(home, wrong).sync(trained[1])
            assert "\n" not in str(refused.value) and "s3cret" not in str(refused.value)
        assert not (tmp_path / "new" / "trials").exists()
        refuse_unsuitable(guarded.replace("//", "//me:pass%20word@"), tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass word")
        refuse_unsuitable(guarded, tmp_path)
        assert Store(home, guarded).sync(trained[1]) > 0
        assert Store(home, guarded).sync(trained[1]) == 0
        found = Store(home, guarded).read(trained[1], tmp_path / "scratch")  # its artifacts come through it too
        assert all((trial.folder / "history.parquet").exists() for trial in found)
    assert stored_steps(Home(served)) == spooled_steps(home, trained[2])


def _held(served):
    with contextlib.suppress(sqlite3.Error):  # its schema is not made yet
        return stored_steps(Home(served))
