"""Background process that syncs spools to MLflow every few seconds while a sweep runs.

The environment names the store.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_lab.errors import LabError, is_disk_full
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.store.current import noted
from dsd_lab.store.system_metrics import Sampler

if TYPE_CHECKING:
    from dsd_lab.store.mlflow_store import Store

_POLL, _MAX_PAUSE = 2.0, 60.0
"""Seconds between passes, and maximum between retries while the store is down."""
_POLL_START = 0.5
"""Seconds between checks of a sweep that has no records yet."""
_NICE = 10
"""Training has priority for the CPU."""


def upload(home: Path, key: str) -> int:
    """Replay until standard input closes, also by the driver's death, then once more.

    Returns 0 if everything is stored.
    """
    finished = threading.Event()
    threading.Thread(target=_wait_for_end, args=(finished,), daemon=True).start()
    store: Store | None = None
    sampler, pause = Sampler(Home(home).sweep_folder(key)), _POLL_START
    while True:
        last = finished.is_set()
        try:
            sampler.sample_when_due()
            manifest = Home(home).manifests().get(key)  # recorded once the sweep is accepted
            if manifest is not None and (store is not None or last or _recorded(Home(home), manifest)):
                store = store or _opened(Home(home))
                with noted(Home(home), [manifest]) if last else contextlib.nullcontext():
                    store.sync(manifest)
                pause = _POLL
        except LabError as error:  # training continues while the store is down or a spool is damaged
            if last:
                return _gave_up(str(error))
            pause = min(_MAX_PAUSE, 2 * pause)
        except OSError as error:
            if not is_disk_full(error):
                raise
            if last:
                return _gave_up(f"{home}: the disk is full")
            pause = min(_MAX_PAUSE, 2 * pause)
        if last:
            return 0
        finished.wait(pause)


def _gave_up(reason: str) -> int:
    say(f"dsd-lab: {reason}; nothing is lost: `dsd-lab report` or the next sweep replays it", error=True)
    return 1


def _recorded(home: Home, manifest: Manifest) -> bool:
    """Whether any trial of the sweep has records."""
    return any(home.trial(i).spool.exists() for i in manifest.ids)


def _opened(home: Home) -> Store:
    from dsd_lab.store.mlflow_store import Store  # MLflow takes CPU seconds that the first workers need to start

    return Store(home)


def _wait_for_end(finished: threading.Event) -> None:
    sys.stdin.read()
    finished.set()


if __name__ == "__main__":
    os.nice(_NICE)
    sys.exit(upload(Path(sys.argv[1]), sys.argv[2]))
