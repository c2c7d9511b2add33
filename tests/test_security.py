"""Nothing listens or connects beyond this machine, no secret is written down, no number that is none."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from neighbours import neighbour, plant_modules
from sweeping import (
    DEADLINE,
    LONG,
    VARIANTS,
    command,
    processes_in,
    run,
    running,
    start,
    train_here,
    wait_until,
    write_spec,
)

from dsd_lab.cli.main import main
from dsd_lab.errors import OK
from dsd_lab.files.atomic import PRIVATE, write_atomic
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import Home
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.faults import StoreUnavailable
from dsd_lab.store.mlflow_store import Store

# -- The network ---------------------------------------------------------------------------------------


def listening(pids: list[int]) -> list[str]:
    """Addresses on which processes listen for TCP connections, in the kernel's hexadecimal."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = os.readlink(entry)
            except OSError:
                continue
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        found += [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_nothing_that_a_sweep_starts_listens_on_another_address_than_loopback(tmp_path, short_tmp):
    spec, home = write_spec(tmp_path, base=LONG), Home(tmp_path / "home")
    (trial,) = load_sweep(spec).trials
    sweep = start("sweep", spec, "--home", home.root, "--no-tracking")
    try:
        worker = wait_until(lambda: running(home, trial.id, 10), "the trial is under way", sweep)
        pids = {int(p.split()[0]) for p in processes_in(short_tmp)} | {sweep.pid, worker}
        addresses = listening([pid for pid in pids if Path(f"/proc/{pid}").exists()])
    finally:
        sweep.terminate()
        sweep.communicate(timeout=DEADLINE)
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert addresses and set(addresses) <= loopback


WATCH = """
import os, socket
if os.environ.get("DSD_CONNECTIONS"):
    real = socket.socket.connect

    def connect(self, address):
        local = self.family == socket.AF_UNIX or str(address[0]).startswith(("127.", "::1", "localhost"))
        if not local and self.type & socket.SOCK_STREAM == socket.SOCK_STREAM:
            with open(os.environ["DSD_CONNECTIONS"], "a") as file:
                file.write(f"{os.getpid()} {address}\\n")
            raise OSError(f"a connection to {address}")
        return real(self, address)

    socket.socket.connect = connect
"""


@pytest.mark.slow
def test_a_sweep_its_store_and_its_report_need_no_network(tmp_path):
    """In a network of its own with nothing but loopback where the machine allows that; every other connection is noted."""
    spec, home, noted = write_spec(tmp_path), tmp_path / "home", tmp_path / "connections"
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(tmp_path / "hooks"), str(Path(__file__).resolve().parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "DSD_CONNECTIONS": str(noted)}
    alone = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("ip") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    for verb in (["sweep", spec], ["report"], ["doctor"]):
        done = subprocess.run(
            [*alone, *command(*verb, "--home", home)], env=environment, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == OK, done.stdout + done.stderr
    assert not noted.exists(), noted.read_text()


# -- Secrets -------------------------------------------------------------------------------------------


def test_no_secret_of_the_environment_is_written_down(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "canary-5f3a9")
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path)
    train_here(home, spec)
    assert run("train", spec, "--variant", "dsd", "--home", home.root)[0] == OK
    written = [path for path in home.root.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"canary-5f3a9" in path.read_bytes()]


def test_files_follow_the_umask_and_what_can_hold_a_secret_is_private(tmp_path):
    home, before = Home(tmp_path / "home"), os.umask(0o027)
    try:
        train_here(home, write_spec(tmp_path, {"dsd": {}, "broken": VARIANTS["broken"]}))
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in home.root.rglob("*") if path.is_file()}
    private = {path for path in modes if path.name == "error.txt"}
    assert private and {modes[path] for path in private} == {0o600}
    assert {path: f"{mode:o}" for path, mode in modes.items() if path not in private and mode != 0o640} == {}


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user")
def test_the_neighbour_of_these_tests_is_another_user_who_reads_no_private_file(tmp_path):
    """Where this fails, the other tests of neighbours play one's own user, and show less."""
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        write_atomic(place / "error.txt", "canary-5f3a9", mode=PRIVATE)
        write_atomic(place / "public.txt", "public", mode=0o644)
        seen = subprocess.run([*neighbour(), "sh", "-c", f"id -u; cat {place}/*"], capture_output=True, text=True)
    finally:
        shutil.rmtree(place)
    assert seen.stdout.splitlines() == ["65534", "public"] and "denied" in seen.stderr


def test_a_password_in_the_address_of_a_store_is_not_shown(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(StoreUnavailable) as caught:
        Store(home, "http://me:canary-5f3a9@127.0.0.1:9")
    assert "canary-5f3a9" not in str(caught.value) and "http://me:***@127.0.0.1:9" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:canary-5f3a9@host:5000/a", "http://me:***@host:5000/a"),
        ("http://me:ca/nary-5f3a9@host", "http://me:***@host"),
        ("http://me:ca@nary-5f3a9@host", "http://me:***@host"),
        ("http://me:ca?n#ary-5f3a9@host", "http://me:***@host"),
        ("http://me:ca nary-5f3a9@host", "http://me:***@host"),
        ("http://me:can%40ary-5f3a9@host", "http://me:***@host"),
        ("https://canary-5f3a9@host/x", "https://***@host/x"),
        (
            "postgresql+psycopg2://host/db?user=me&password=canary-5f3a9",
            "postgresql+psycopg2://host/db?user=me&password=***",
        ),
        ("https://host/x?X-Amz-Signature=canary-5f3a9&a=1", "https://host/x?X-Amz-Signature=***&a=1"),
        ("https://host/x?access_token=ca nary-5f3a9", "https://host/x?access_token=***"),
        ("sqlite:////home/me@work/a:b@c/mlflow.db", "sqlite:////home/me@work/a:b@c/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_no_kind_of_secret_in_an_address_is_shown(address, shown):
    assert without_password(address, address) == shown
    told = without_password(f"the store {address} does not answer: no host {address} there", address)
    assert told == f"the store {shown} does not answer: no host {shown} there"
    if " " not in address:  # an address that nobody has named
        assert without_password(f"it says {address} too") == f"it says {shown} too"


def called_with(word):
    """The arguments of every process of this machine that name something, as `ps` shows them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if word in line and int(process.name) != os.getpid() else []
    return found


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's list of processes")
def test_the_uploader_is_told_the_store_where_no_other_user_sees_it(tmp_path, capsys, monkeypatch):
    """A sweep without anything to train stores what there is, at a server that looks at the processes before it answers."""
    spec, home, seen, asked = write_spec(tmp_path), tmp_path / "home", [], []
    train_here(Home(home), spec)
    (tmp_path / "planted").mkdir()
    imported = plant_modules(tmp_path / "planted")
    monkeypatch.chdir(tmp_path / "planted")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):  # closed
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        asked.append(connection.recv(65536))
                        seen.extend(called_with(str(home)))
                        connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        uri = f"http://me:canary-5f3a9@127.0.0.1:{listening.getsockname()[1]}"
        code = main(["sweep", str(spec), "--home", str(home), "--tracking-uri", uri])
        listening.shutdown(socket.SHUT_RDWR)
    assert code == OK and any(base64.b64encode(b"me:canary-5f3a9") in request for request in asked)
    assert not imported.exists()
    assert any("dsd_lab.store.uploader" in line for line in seen) and not [
        line for line in seen if "canary-5f3a9" in line
    ]
    assert "canary-5f3a9" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("verb", ["ui", "doctor"])
def test_a_password_in_the_address_of_a_store_is_not_said_by(verb, tmp_path, capsys):
    main([verb, "--home", str(tmp_path), "--tracking-uri", "http://me:canary-5f3a9@127.0.0.1:9"])
    said = "".join(capsys.readouterr())
    assert "http://me:***@127.0.0.1:9" in said and "canary-5f3a9" not in said


@pytest.mark.integration
def test_usage_reports_are_off_before_anything_could_send_one():
    program = (
        "import os, dsd_lab.runs.ray_engine, dsd_lab.store.mlflow_store;"
        "print(os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.split() == ["0", "true"], done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_the_command_imports_nothing_from_the_current_folder(verb, tmp_path):
    (tmp_path / "planted").mkdir()
    spec, imported = write_spec(tmp_path / "planted"), plant_modules(tmp_path / "planted")
    options = ["--variant", "dsd", "--no-tracking"] if verb == "train" else []
    done = subprocess.run(
        command(verb, spec.name, *options, "--home", tmp_path / "home"),
        cwd=tmp_path / "planted",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == OK and not imported.exists(), done.stderr


# -- Numbers that are none -----------------------------------------------------------------------------


def test_a_number_that_is_not_finite_is_in_no_file_that_anything_reads(tmp_path):
    """JSON has no name for it and MLflow would store 1.8e308; a missing value says what is true."""
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path, {"wild": VARIANTS["wild"]})
    (trial,) = load_sweep(spec).trials
    for _ in run_trial(home, trial, [], DataShelf()):
        pass
    for path in home.root.rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=lambda name, path=path: pytest.fail(f"{name} in {path}"))
