"""`dsd-lab ui`: open MLflow's pages on this machine, for this user only."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import INTERRUPTED, OK, TERMINATED, BadInput
from dsd_lab.files.printable import say
from dsd_lab.files.redaction import without_password
from dsd_lab.home.mark import home_id
from dsd_lab.runs.child_environment import safe_imports
from dsd_lab.runs.signals import Terminated, raise_terminated
from dsd_lab.store.moved import relocate
from dsd_lab.store.uri import chosen_uri, own_uri, with_driver

_HINT = (
    "it opens on the trials of the latest sweep; charts: the second button above the table; "
    "other sweeps and means of variants: the menu at the top right"
)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    home = home_of(arguments)
    uri = chosen_uri(arguments.tracking_uri)
    if uri is None:
        database = home.root.resolve() / "mlflow.db"
        if not database.exists():
            raise BadInput(f"no store in {home.root} yet; run `dsd-lab sweep SPEC` first, or give its --home")
        uri = own_uri(home.root)
        relocate(database, home.root, home.id, own=True)
    if uri.startswith(("http://", "https://")):
        shown = without_password(uri, uri)
        page = _newest(uri, home_id(home.root) or "")
        shown = shown if page is None else f"{shown.rstrip('/')}/#{page}"
        _print(arguments, {"url": shown}, [f"the store is already a server: {shown}", _HINT])
        return OK
    with listening(arguments.port) as bound:  # kept open, so that no other program can take the port
        port, token = bound.getsockname()[1], secrets.token_urlsafe(32)
        url = f"http://127.0.0.1:{port}/?token={token}"
        ssh = f"ssh -N -L {port}:127.0.0.1:{port} {os.environ.get('USER', 'you')}@{socket.gethostname()}"
        _print(
            arguments,
            {"url": url, "ssh": ssh},
            [f"MLflow on {url} (Ctrl-C stops it)", _HINT, f"from another machine: {ssh}, then the same address there"],
        )
        # In the environment, since command lines are visible to all users.
        hidden = {"DSD_LAB_UI_TOKEN": token, "MLFLOW_BACKEND_STORE_URI": with_driver(uri)}
        # Disables MLflow's seven job runner processes, which only evaluate chatbots.
        less = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-P", "-m", "dsd_lab.store.ui_server", str(bound.fileno()), home_id(home.root) or ""]
        return _serve(command, {**os.environ, **safe_imports(os.environ), **less, **hidden}, bound.fileno())


def _newest(uri: str, home: str) -> str | None:
    """URL fragment of the newest sweep's trials on a server; None where there are none or it does not answer."""
    from mlflow import MlflowClient  # takes seconds, only needed for a server

    from dsd_lab.store.faults import StoreUnavailable, translate_errors
    from dsd_lab.store.views import newest_view

    try:
        with translate_errors(uri):
            return newest_view(MlflowClient(tracking_uri=uri), home)
    except StoreUnavailable as error:
        say(f"dsd-lab: {error}", error=True)
        return None


def _print(arguments: argparse.Namespace, answer: dict[str, str], lines: list[str]) -> None:
    if arguments.json:
        print_json(answer)
    else:
        for line in lines:
            say(line)
    sys.stdout.flush()


def _serve(command: list[str], environment: dict[str, str], handle: int) -> int:
    """Run a server until it ends or this process is terminated. Its processes end with this one."""
    server = subprocess.Popen(command, env=environment, pass_fds=(handle,), start_new_session=True)
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


def listening(wanted: int) -> socket.socket:
    """Listen on the wanted port of 127.0.0.1, or on the first free of the next 100.

    Raises:
        BadInput: all of them are in use.
    """
    for port in range(wanted, min(wanted + 100, 65536)):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port), backlog=100)
    raise BadInput(f"--port {wanted}: it and the next 100 ports are in use")
