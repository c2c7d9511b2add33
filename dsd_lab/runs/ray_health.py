"""Whether the Ray that a sweep uses still lives: Tune itself would wait for ever for one that does not answer."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import ray
from ray._private import ray_constants

_PARTS = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
"""Ray's processes without which nothing goes on: the first gives trials their workers, the second knows where they are."""
_LOOK_EVERY, _ANSWERS_WITHIN, _PATIENCE = 2.0, 1.0, 30.0
"""Seconds between looks at a cluster, in which its head takes a connection, and without one after which it is gone.

Ray itself waits for 60, and then ends this process without a word that a user could understand."""


class Health:
    """Asked between two of Tune's steps."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._silent_since: float | None = None

    def __call__(self) -> str | None:
        """The name of a process that has died, or that cannot be reached any more; None where they live."""
        node = ray._private.worker._global_node
        if node is None:
            return None
        own: dict[str, Any] = node.all_processes
        if own:
            return next(
                (name for name in _PARTS for part in own.get(name, []) if part.process.poll() is not None), None
            )
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return None
        self._looked = now
        if not _takes_connections(socket.AF_UNIX, str(node.raylet_socket_name).removeprefix("unix:")):
            return _PARTS[0]
        host, _, port = str(node.gcs_address).rpartition(":")
        if _takes_connections(socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))):
            self._silent_since = None
            return None
        self._silent_since = now if self._silent_since is None else self._silent_since
        return _PARTS[1] if now - self._silent_since >= _PATIENCE else None


def _takes_connections(family: int, address: Any) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWERS_WITHIN)
        probe.connect(address)
        return True
    return False
