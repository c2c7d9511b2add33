"""A store that fails in every way that stores fail: nothing is lost, nothing doubled, and training knows nothing of it."""

import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import threading

import pytest
from sqlalchemy import Engine, event
from sweeping import (
    DEADLINE,
    VARIANTS,
    faulty_server,
    free_port,
    in_child,
    mlflow_server,
    run,
    slow_proxy,
    spooled_steps,
    stored_steps,
    train_here,
    write_spec,
)

from dsd_lab.cli import sweep
from dsd_lab.errors import OK
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.store.current import noted
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with two finished trials and a store without runs; copied by every test."""
    folder = tmp_path_factory.mktemp("trained")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control")}))
    Store(home)
    return home.root, manifest_of(plan), [t.id for t in plan.trials]


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "home")
    return Home(tmp_path / "home")


def assert_stored_once(home, trained):
    """After the fault, a pass stores what is missing, and another one nothing more."""
    _, manifest, ids = trained
    Store(home).sync(manifest)
    assert stored_steps(home) == spooled_steps(home, ids)
    assert Store(home).sync(manifest) == 0
    assert stored_steps(home) == spooled_steps(home, ids)


ANSWERS = {
    "never up": lambda: None,
    "accepts and never answers": lambda: faulty_server(None),
    "500": lambda: faulty_server(
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ),
    "no HTTP": lambda: faulty_server(b"220 smtp.example ESMTP\r\n"),
    "a page of something else": lambda: faulty_server(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<html>hello!"
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_f10_a_server_that_does_not_answer_as_mlflow_does_is_one_line_and_loses_nothing(
    answer, home, trained, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = ANSWERS[answer]()
    if server is None:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            Store(home, f"http://127.0.0.1:{free_port()}").sync(trained[1])
    else:
        with server as uri, pytest.raises(StoreUnavailable, match=f"the store {uri} does not answer") as caught:
            Store(home, uri).sync(trained[1])
        assert "\n" not in str(caught.value)
    assert_stored_once(home, trained)


def test_f10_a_server_that_answers_late_is_waited_for_and_stores_everything_once(home, trained, tmp_path):
    _, manifest, ids = trained
    delayed: list[int] = []
    with mlflow_server(tmp_path / "served", free_port()) as uri, slow_proxy(uri, 0.1, delayed) as late:
        Store(home, late).sync(manifest)
        assert len(delayed) >= 20
    assert stored_steps(Home(tmp_path / "served")) == spooled_steps(home, ids)
    assert_stored_once(home, trained)


def test_f10_a_database_that_may_only_be_read_is_told_of_and_loses_nothing(home, trained):
    uri = f"sqlite:///file:{home.root / 'mlflow.db'}?mode=ro&uri=true"
    with pytest.raises(StoreUnavailable, match="readonly"):
        Store(home, uri).sync(trained[1])
    assert_stored_once(home, trained)


def test_f10_a_disk_that_fills_up_under_the_database_is_told_of_and_loses_nothing(home, trained):
    size = (home.root / "mlflow.db").stat().st_size

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192,) * 2)
        try:
            Store(home).sync(trained[1])
        except StoreUnavailable:
            os._exit(7)

    assert in_child(work) == 7
    assert_stored_once(home, trained)


@pytest.fixture
def short_waits():
    """MLflow waits half a second and not 20 for a locked database; it sets that time on every session."""
    shortened = []

    def shorten(connection, cursor, statement, parameters, context, many):
        if "busy_timeout" in statement:
            shortened.append(statement)
            statement = "PRAGMA busy_timeout = 500"
        return statement, parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield shortened
    event.remove(Engine, "before_cursor_execute", shorten)


def test_f11_a_database_that_another_program_locks_is_told_of_and_replayed_when_it_is_free(home, trained, short_waits):
    store = Store(home)
    assert short_waits  # otherwise MLflow sets the time in another way now
    locking = sqlite3.connect(home.root / "mlflow.db", isolation_level=None)
    locking.execute("begin exclusive")
    try:
        with pytest.raises(StoreUnavailable, match="locked"):
            store.sync(trained[1])
    finally:
        locking.execute("rollback")
        locking.close()
    store.sync(trained[1])
    assert_stored_once(home, trained)


def test_f11_a_writer_that_holds_the_database_for_a_moment_is_waited_for(home, trained):
    store, locked_now, done = Store(home), threading.Event(), threading.Event()

    def write():
        with sqlite3.connect(home.root / "mlflow.db", isolation_level=None) as other:
            other.execute("begin immediate")
            locked_now.set()
            done.wait(1.0)
            other.execute("rollback")

    writer = threading.Thread(target=write)
    writer.start()
    assert locked_now.wait(DEADLINE)
    store.sync(trained[1])
    writer.join()
    assert_stored_once(home, trained)


def _sync(root, manifest, errors):
    try:
        Store(Home(root)).sync(manifest)
    except BaseException as error:
        errors.put(repr(error))
        raise


@pytest.mark.slow
def test_f9_eight_drivers_on_a_fresh_store_store_everything_once(home, trained):
    (home.root / "mlflow.db").unlink()
    processes = multiprocessing.get_context("fork")
    errors = processes.Queue()
    started = [processes.Process(target=_sync, args=(home.root, trained[1], errors)) for _ in range(8)]
    for process in started:
        process.start()
    for process in started:
        process.join(DEADLINE)
    assert [process.exitcode for process in started] == [0] * 8, errors.get()
    assert_stored_once(home, trained)
    with sqlite3.connect(home.root / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (3,)


def test_a_damaged_line_of_a_spool_and_a_newer_one_are_one_line_for_every_reader(home, trained, capsys):
    (first, _) = trained[2]
    spool = home.trial(first).spool
    lines = spool.read_bytes().splitlines(keepends=True)
    spool.write_bytes(b"".join([lines[0], b"{damaged\n", *lines[2:]]))
    for verb in (["report"], ["logs", first]):
        assert run(*verb, "--home", home.root)[0] != OK
        error = capsys.readouterr().err
        assert f"{spool}:2: is damaged" in error and "Traceback" not in error


def test_a_finished_sweep_asks_the_store_only_where_something_has_changed_since(tmp_path, monkeypatch):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path, {"dsd": VARIANTS["dsd"]})
    plan = train_here(home, spec)
    (trial,) = (home.trial(t.id) for t in plan.trials)
    asked = []
    monkeypatch.setattr(sweep, "_start_uploader", lambda *of: asked.append(of))

    def asks(*options):
        asked.clear()
        assert run("sweep", spec, "--home", home.root, *options)[0] == OK
        return bool(asked)

    def store(*options, meanwhile=lambda: None):
        with noted(home, [home.manifests()["tiny"]]):
            Store(home).sync(home.manifests()["tiny"])
            meanwhile()
        return not asks(*options)

    assert asks() and store()
    trial.root.joinpath("status.json").touch()
    assert asks() and store()
    assert not store(meanwhile=trial.root.joinpath("status.json").touch), "written after the store had read it"
    assert store()
    home.root.joinpath("mlflow.db").touch()  # as another sweep's upload does
    assert asks() and store()
    changed = ("--set", "report.reference=dsd")
    assert asks(*changed) and store(*changed)
    home.root.joinpath("mlflow.db").unlink()
    assert asks() and asks("--tracking-uri", f"sqlite:///{tmp_path}/other.db")
