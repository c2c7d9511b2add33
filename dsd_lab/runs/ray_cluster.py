"""Start Ray in a private temporary folder, or join a running cluster.

Anyone who reaches Ray's ports can run code as its user. Our own Ray therefore listens on loopback only and requires
a random token, which only this sweep's processes know. Neither its processes nor a cluster's logs get more of the
environment than needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from dsd_lab.errors import NoResources, comes_from_full_disk
from dsd_lab.files.temporary import private_folder
from dsd_lab.home.home import Home
from dsd_lab.runs.child_environment import child_environment

_TIMEOUT = 10.0
"""Seconds that a cluster has to answer."""
_SOCKET_PATH_ROOM = 43
"""Characters left for the folder in Ray's socket paths: Linux allows 107, Ray's own part has up to 64."""
_FOLDER = "ray"


@contextlib.contextmanager
def connected(home: Home, cluster: dict[str, Any]) -> Iterator[Path]:
    """Connect to a running cluster if an address is given, else start Ray.

    Yields a folder for Tune's own files that all processes see.

    Meanwhile this process has a reduced environment, since Tune copies credentials from it into the cluster's
    logs.

    Raises:
        NoResources: no cluster answers at the address, or it requires another token.
    """
    # Ray prints the traceback of every lost worker; states, `error.txt` and the summary already report it.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGTERM)
    with _joined(home, cluster) if "address" in cluster else _started(cluster) as folder:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has just installed handlers that end this process at once
        yield folder


@contextlib.contextmanager
def _joined(home: Home, cluster: dict[str, Any]) -> Iterator[Path]:
    address = cluster["address"]
    named = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "--address"
    host, colon, port = address.rpartition(":")
    # First without a token: a token file may belong to another cluster, and a cluster without tokens accepts none.
    tries: list[dict[str, str]] = [{}, *filter(None, [_token_of_user()])]
    for token in tries:
        with _environment(token):
            try:
                if colon and port.isdecimal() and "/" not in host:  # Ray itself would try a dead address for minutes
                    socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()
                ray.init(**{"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _job(), **cluster})
            except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
                ray.shutdown()
                if isinstance(error, ray.exceptions.AuthenticationError) and token is not tries[-1]:
                    continue
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                hint = "" if isinstance(error, ConnectionRefusedError) else f" ({_token_hint()})"
                raise NoResources(f"{named} {address}: no Ray cluster answers: {reason}{hint}") from None
            try:
                yield home.root.resolve() / "ray" / "tune"
            finally:
                ray.shutdown()
            return


def _token_of_user() -> dict[str, str]:
    """`RAY_AUTH_MODE=token` if the user has a token and set no mode, as `ray start` does."""
    if "RAY_AUTH_MODE" in os.environ or not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return {}
    return {"RAY_AUTH_MODE": "token"}


def _token_hint() -> str:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return "a token was sent; the cluster's may differ"
    return "no token was sent; if the cluster requires one, set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"


@contextlib.contextmanager
def _started(cluster: dict[str, Any]) -> Iterator[Path]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with (
        private_folder(_SOCKET_PATH_ROOM - len(f"/{_FOLDER}")) as folder,
        _environment(token, without=("RAY_AUTH_TOKEN_PATH",)),
    ):
        try:
            ray._private.worker.print_to_stdstream = _print_without_raylet_logs
            try:
                with _loopback():
                    ray.init(
                        **{
                            "address": "local",
                            "include_dashboard": False,
                            "log_to_driver": False,
                            "logging_level": logging.ERROR,
                            "object_store_memory": 200 * 1024**2,
                            "job_config": _job(),
                            # Ray makes it world-accessible; its parent is private.
                            "_temp_dir": str(folder / _FOLDER),
                            **cluster,
                        }
                    )
            except Exception as error:  # Ray raises no narrower class
                full = "the disk is full" if comes_from_full_disk(error) else None
                reason = full or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                raise NoResources(
                    f"Ray does not start: {reason}; if the machine was too busy, run the same command again"
                ) from None
            yield folder / "tune"
        finally:
            ray.shutdown()
            ray._private.worker.print_to_stdstream = _PRINT


@contextlib.contextmanager
def _environment(changes: dict[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """Give this process the environment of its children, and make Ray reread it at both ends of the block."""
    before = dict(os.environ)
    kept = child_environment(before) | changes
    try:
        _replace_environment({name: value for name, value in kept.items() if name not in without})
        yield
    finally:
        _replace_environment(before)


def _replace_environment(content: dict[str, str]) -> None:
    for name in set(os.environ) - set(content):
        del os.environ[name]
    os.environ.update(content)
    Config.initialize("")  # first, since a running thread of Ray would miss the token that its mode requires
    AuthenticationTokenLoader.instance().reset_cache()


class _NoImportPaths(list):  # type: ignore[type-arg]
    """Ignores additions: Ray adds the current folder to its workers' import paths, where modules could be shadowed."""

    def extend(self, paths: Any) -> None:
        return


def _job() -> JobConfig:
    job = JobConfig()
    job._py_driver_sys_path = _NoImportPaths()
    return job


def _print_without_raylet_logs(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Print Ray's messages without the log lines that it appends when its raylet died."""
    lines = [line for line in data["lines"] if "of the Raylet logs:" not in line]
    if lines:
        _PRINT({**data, "lines": lines}, ignore_prefix)


_PRINT = ray._private.worker.print_to_stdstream


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Make Ray's servers listen on 127.0.0.1 only, as on systems without cluster support.

    Also skips Ray's API server. Without a dashboard it has no use, and it queries the network for the cloud
    provider even with usage reports off.
    """
    changed: tuple[tuple[object, str, object], ...]
    changed = ((ray_constants, "ENABLE_RAY_CLUSTER", False), (Node, "start_api_server", lambda self, **options: None))
    before = [getattr(place, name) for place, name, _ in changed]
    for place, name, value in changed:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (owner, name, _), earlier in zip(changed, before, strict=True):
            setattr(owner, name, earlier)
