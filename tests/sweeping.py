"""What the end-to-end tests share: a tiny spec, ways to run it, and what a trial leaves behind."""

import base64
import contextlib
import http.server
import io
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
import yaml

from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.training.checkpoints import list_checkpoints, save_checkpoint
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.runs.signals import TERMINATING
from dsd_lab.runs.spool_writer import read_spool
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sweep import Plan, PlannedTrial
from dsd_lab.specs.trial import Generation
from dsd_lab.store.replay import stored_metrics

DEADLINE = float(os.environ.get("DSD_LAB_TEST_DEADLINE", "240"))
"""Seconds after which something that a test waits for will not happen any more; more on a machine that many share."""

BASE = {
    "network": {"width": 16, "heads": 2, "encode_blocks": 1, "denoise_blocks": 1, "decode_blocks": 1},
    "training": {"steps": 12, "batch_size": 8},
    "probe": {"every": 6, "images": 16, "t_bins": 2, "gradient_images": 4},
    "observation": {"log_every": 3, "checkpoint_every": 4, "images_every": 6, "images": 4},
}
VARIANTS = {
    "dsd": {},
    "control": {"objective": {"diffusion_weight": 0.0}},
    "naive": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "wild": {"optimiser": {"lr": 10.0, "weight_decay": 10.0, "clip": 1e6, "schedule": "constant"}},
    "broken": {"data": {"source": "idx", "path": "damaged"}},
}
"""`wild` diverges within three steps on any machine: each step multiplies its matrices by -99. The data of `broken` is there, but damaged."""
FOREIGN = {"data": {"revision": "foreign"}}
"""A variant that passes every check before a sweep and fails in it, once `foreign_checkpoint` was called for its trials."""
LONG = {
    "training": {"steps": 1000, "batch_size": 8},
    "probe": {"every": 200, "images": 16, "t_bins": 2, "gradient_images": 4},
    "observation": {"log_every": 5, "checkpoint_every": 20, "images_every": 500, "images": 4},
}
"""Long enough to be interrupted: several seconds."""
EVALUATION = {"sampler": "euler", "steps": 2, "images": 20}


def write_spec(folder: Path, variants: dict[str, Any] | None = None, **keys: Any) -> Path:
    """A spec of tiny trials; sections of `base` are merged into the tiny ones, everything else is replaced."""
    base = keys.pop("base", {})
    merged = {k: BASE.get(k, {}) | base.get(k, {}) for k in {**BASE, **base}}
    content = {"name": "tiny", "why": "A test.", "base": merged, "variants": variants or {"dsd": {}}, "seeds": [0]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(content | keys, sort_keys=False))
    damaged = folder / "damaged"
    damaged.mkdir(exist_ok=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (damaged / f"{name}-ubyte").write_bytes(b"this was an idx file once")
    return path


def write_idx(folder: Path, count: int = 40) -> None:
    """Images of 8 x 8 random pixels in MNIST's four files."""
    random = np.random.default_rng(0)
    for name in ("train", "t10k"):
        pixels, labels = random.integers(0, 256, (count, 8, 8), np.uint8), np.arange(count, dtype=np.uint8) % 4
        images = bytes((0, 0, 8, 3)) + struct.pack(">3I", *pixels.shape) + pixels.tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            bytes((0, 0, 8, 1)) + struct.pack(">I", count) + labels.tobytes()
        )


def foreign_checkpoint(home: Home, trial: PlannedTrial) -> None:
    """Give a trial the whole checkpoint of another network, which nothing looks at before it resumes."""
    state = {"summed": 0, "data": load_data(trial.fields.data).fingerprint, "device": "cpu"}
    save_checkpoint(home.trial(trial.id).checkpoints, 4, {"network.other": torch.zeros(2)}, state, 2)


def run(*arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code of a verb run in this process, and its answer in JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*map(str, arguments), "--json"])
    return code, json.loads(out.getvalue()) if out.getvalue() else {}


def command(*arguments: object) -> list[str]:
    """The command line of a verb for another process."""
    return [sys.executable, "-m", "dsd_lab", *map(str, arguments)]


def imported(*arguments: str, blocked: tuple[str, ...] = ()) -> tuple[set[str], int, str, str]:
    """Top-level modules that a verb has imported in a fresh process, its exit code and what it printed."""
    program = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from dsd_lab.cli.main import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "loaded = sorted({m.partition('.')[0] for m, x in sys.modules.items() if x is not None})\n"
        "print('\\n#' + ' '.join(loaded))\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=200)
    printed, _, modules = done.stdout.rpartition("\n#")
    return set(modules.split()), done.returncode, printed, done.stderr


def start(*arguments: object, output: Any = subprocess.PIPE, **options: Any) -> subprocess.Popen[str]:
    """A verb in another process, in a session of its own as a terminal's foreground job is, that ignores no signal."""
    pipes = {"stdout": output, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    # Tests under `nohup`, or in a shell's background, ignore some themselves, and their children would inherit it.
    ignored = [n for n in (*TERMINATING, signal.SIGINT) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        return subprocess.Popen(command(*arguments), **pipes, **options)
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The answer in JSON of a verb that goes on afterwards."""
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line == "}\n":
            return json.loads("".join(printed))
    raise AssertionError(f"the process ended without an answer: {''.join(printed)}")


def train_here(home: Home, path: Path, *overrides: str) -> Plan:
    """Run the trials of a spec in this process, one after the other, and record the sweep as `sweep` does."""
    plan = load_sweep(path, sets=list(overrides))
    home.prepare()
    home.write_manifest(manifest_of(plan))
    shelf = DataShelf()
    for trial in plan.trials:
        for _ in run_trial(home, trial, plan.spec.evaluate, shelf):
            pass
    return plan


def described(fields: dict[str, Any], provenance: dict[str, Any] | None = None, **data: Any) -> TrialRecord:
    """The record of an invented trial with these fields, trained on the digits."""
    machine = {"host": "h", "system": "Linux", "processor": "a CPU"}
    origin = {"code": "c", "git_commit": None, "git_dirty": False, "python": "3.11", "versions": {}, "device": "cpu"}
    told = {"name": "digits", "fingerprint": "f" * 64, "train": 1402, "holdout": 395, "classes": 10, **data}
    named = {"id": "0" * 12, "variant": "v", "point": {}, "seed": 0, "size": "nano8", "name": "v s0", "overrides": {}}
    origin = provenance or origin | {"machine": machine}
    return TrialRecord.model_validate(
        {**named, "fields": fields, "canonical": {}, "flops_per_image": 5_177_344, "data": told, "provenance": origin}
    )


def events(home: Home, trial_id: str) -> list[dict[str, Any]]:
    """A trial's spool without clock times, speed and memory."""
    return [line.result() for line in read_spool(home.trial(trial_id).spool)]


def outcome(home: Home, trial_id: str) -> tuple[Any, ...]:
    """What of a trial must not depend on how it was run: all tensors' digest, events without clock times, pictures."""
    folder = home.trial(trial_id)
    newest = list_checkpoints(folder.checkpoints)[0]
    digest = json.loads((newest / "manifest.json").read_text())["sha256"]
    pictures = {path.name: path.read_bytes() for path in folder.images.glob("*.png")}
    return newest.name, digest, events(home, trial_id), pictures


def running(home: Home, trial: str, lines: int) -> int:
    """The process that runs a trial, once its spool has so many lines; 0 before."""
    folder = home.trial(trial)
    long_enough = folder.spool.exists() and folder.spool.read_bytes().count(b"\n") >= lines
    return int(folder.status().pid or 0) if long_enough and folder.state() == "running" else 0


def stored_steps(home: Home) -> list[tuple[Any, ...]]:
    """(trial, metric, step) of all metrics of trials in the store, repeated ones too."""
    query = """select t.value, m.key, m.step from metrics m
               join tags t on t.run_uuid = m.run_uuid and t.key = 'dsd.trial'
               join tags k on k.run_uuid = m.run_uuid and k.key = 'dsd.kind' and k.value = 'trial'"""
    with sqlite3.connect(home.root / "mlflow.db") as database:
        return sorted(database.execute(query).fetchall())


def spooled_steps(home: Home, ids: list[str]) -> list[tuple[Any, ...]]:
    """(trial, metric, step) of everything that the trials have recorded."""
    return sorted(
        (trial, name, line.step)
        for trial in ids
        for line in read_spool(home.trial(trial).spool)
        for name in stored_metrics(line)
    )


def wait_until(happened: Callable[[], Any], what: str, process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for something, and fail where it does not happen or the process that would do it has ended."""
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.05)):
        found = happened()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended before: {what}\n{process.communicate()[0]}")
        pause.wait(0.05)
    raise AssertionError(f"did not happen: {what}")


def processes_in(folder: Path) -> list[str]:
    """Living processes that have a file below a folder open, such as Ray's with their logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            opened = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            if any(name.startswith(f"{folder.resolve()}/") for name in opened):
                found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(uri: str) -> bool:
    """Whether something accepts connections there."""
    host, port = uri.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """MLflow's own server on loopback, with its database and files in a folder; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    place = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *place, *where]
    # Its job runners, which nothing here needs, would leave their queue in shared memory.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"  # a pipe that nobody reads fills, and then the server waits for ever
    with log.open("ab") as file:
        server = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(uri) or server.poll() is not None, "the server answers")
        assert server.poll() is None, log.read_text()
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(DEADLINE)


@contextlib.contextmanager
def faulty_server(answer: bytes | None) -> Iterator[str]:
    """A server on loopback that answers every request with these bytes, or accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    connection, _ = listening.accept()
                    kept.append(connection)
                    if answer is not None:
                        connection.recv(65536)
                        connection.sendall(answer)
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


@contextlib.contextmanager
def slow_proxy(uri: str, seconds: float, delayed: list[int]) -> Iterator[str]:
    """A server on loopback that passes everything on to another, each request so many seconds late; adds their bytes to `delayed`."""
    host, port = uri.removeprefix("http://").split(":")

    def pass_on(source: socket.socket, sink: socket.socket, late: float) -> None:
        with contextlib.suppress(OSError), source, sink:
            while content := source.recv(1 << 20):
                if late:
                    threading.Event().wait(late)
                    delayed.append(len(content))
                sink.sendall(content)

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    client, _ = listening.accept()
                    server = socket.create_connection((host, int(port)))
                    threading.Thread(target=pass_on, args=(client, server, seconds), daemon=True).start()
                    threading.Thread(target=pass_on, args=(server, client, 0.0), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def asking_for_password(uri: str, user: str, password: str) -> Iterator[str]:
    """A server on loopback that passes on to another what comes with a user's name and password, and answers 401 to the rest."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != expected:
                code, content, kind = 401, b"who are you?", "text/plain"
            else:
                kept = {
                    name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
                }
                answer = requests.request(self.command, uri + self.path, headers=kept, data=body, timeout=DEADLINE)
                code, content, kind = (
                    answer.status_code,
                    answer.content,
                    answer.headers.get("Content-Type", "text/plain"),
                )
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def in_child(work: Callable[[], Any]) -> int:
    """Do something in a forked process; returns its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(home: Home, trial: PlannedTrial, evaluations: Sequence[Generation] = ()) -> list[str]:
    """Bring a trial to its end here; returns the states that it went through."""
    return list(dict.fromkeys(p.state for p in run_trial(home, trial, list(evaluations), DataShelf())))


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
