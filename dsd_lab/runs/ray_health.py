"""Health check of the Ray that a sweep uses: Tune would wait forever for a Ray that does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private import ray_constants

_RAYLET, _GCS = ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER
"""Ray's necessary processes: the raylet gives trials their workers, the GCS server knows where the workers are."""
_LOOK_EVERY, _ANSWERS_WITHIN, _PATIENCE = 2.0, 1.0, 30.0
"""Seconds between checks of a joined cluster, seconds in which a process accepts a connection, and seconds without one
after which the GCS server counts as lost. Ray itself waits for 60 s and then ends this process without a clear message."""
_RAYLET_TRIES = 2
"""Consecutive failed checks after which the raylet counts as lost; it runs on this machine, but may be busy."""

_WATCH_EVERY, _NOTICE = 0.5, 10.0
"""Seconds between checks of `Watch`, and seconds that Tune has to end after a process was lost."""


class Watch:
    """Checks in a thread while it is entered; `found` says what was lost.

    Tune looks at `found` between two of its steps. In a step it may wait in Ray's compiled code for a lost process, where
    no exception reaches it, until Ray ends this process after 60 s.

    Args:
        stuck: called in the thread where Tune has not ended 10 s after a process was lost; ends this process.
    """

    def __init__(self, stuck: Callable[[str], None]) -> None:
        self.found: str | None = None
        self._stuck, self._left = stuck, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *raised: object) -> None:
        self._left.set()

    def _watch(self) -> None:
        health = Health()
        while not self._left.wait(_WATCH_EVERY):
            self.found = health()
            if self.found is not None:
                if not self._left.wait(_NOTICE):
                    self._stuck(self.found)
                return


class Health:
    """What happened to Ray's necessary processes."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._raylet_failures = 0
        self._silent_since: float | None = None

    def __call__(self) -> str | None:
        """What happened to a necessary process, such as `raylet died`; None while all are alive."""
        node = ray._private.worker._global_node
        if node is None:
            return None
        own: dict[str, Any] = node.all_processes
        if own:
            parts = ((name, part) for name in (_RAYLET, _GCS) for part in own.get(name, []))
            return next((f"{name} died" for name, part in parts if part.process.poll() is not None), None)
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return None
        self._looked = now
        if not _accepts_connections(socket.AF_UNIX, str(node.raylet_socket_name).removeprefix("unix:")):
            self._raylet_failures += 1
            return f"{_RAYLET} died or cannot be reached" if self._raylet_failures >= _RAYLET_TRIES else None
        self._raylet_failures = 0
        host, _, port = str(node.gcs_address).rpartition(":")
        if _accepts_connections(socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))):
            self._silent_since = None
            return None
        self._silent_since = now if self._silent_since is None else self._silent_since
        return f"{_GCS} died or cannot be reached" if now - self._silent_since >= _PATIENCE else None


def _accepts_connections(family: int, address: Any) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWERS_WITHIN)
        probe.connect(address)
        return True
    return False
