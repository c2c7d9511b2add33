"""`dsd-lab ui`: MLflow's own UI, on this machine only."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import INTERRUPTED, OK, TERMINATED, BadInput
from dsd_lab.runs.signals import Terminated, raise_terminated
from dsd_lab.store.uri import chosen_uri, without_password


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    home = home_of(arguments)
    uri = chosen_uri(arguments.tracking_uri)
    if uri is None:
        database = home.root.resolve() / "mlflow.db"
        if not database.exists():
            raise BadInput(
                f"no store in {home.root} yet; run `dsd-lab sweep SPEC` first, or name its folder with --home"
            )
        uri = f"sqlite:///{database}"
    if uri.startswith(("http://", "https://")):
        shown = without_password(uri)
        _tell(arguments, {"url": shown}, [f"the store is a server already: {shown}"])
        return OK
    port = free_port(arguments.port)
    url = f"http://127.0.0.1:{port}"
    ssh = f"ssh -N -L {port}:127.0.0.1:{port} {os.environ.get('USER', 'you')}@{socket.gethostname()}"
    _tell(arguments, {"url": url, "ssh": ssh}, [f"MLflow on {url} (Ctrl-C ends it)", f"from another machine: {ssh}"])
    # Its job runners, seven processes for judging chatbots, do nothing here.
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # not among the arguments, which everybody on the machine sees
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *where]
    return _serve(command, environment)


def _tell(arguments: argparse.Namespace, answer: dict[str, str], lines: list[str]) -> None:
    if arguments.json:
        print_json(answer)
    else:
        print("\n".join(lines))
    sys.stdout.flush()


def _serve(command: list[str], environment: dict[str, str]) -> int:
    """Run a server until it ends or this process is told to; it and the processes that it started end with us."""
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    finally:
        signal.signal(signal.SIGTERM, previous)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1, or the next of 100 that is free."""
    for port in range(wanted, min(wanted + 100, 65536)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BadInput(f"--port {wanted}: neither it nor the next 100 are free")
