"""End a process whose training hangs, and write its stacks to a file."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class Watchdog:
    """Ends the process if no step finishes in time, after writing the stacks of all threads.

    Only time in which the process runs counts. A suspended process or machine is therefore not taken for a hang.

    Args:
        report: file for the stacks.
        patience: seconds without a step.
        record: called with a message before the process ends.
    """

    def __init__(self, report: Path, patience: float, record: Callable[[str], None] = lambda why: None) -> None:
        self._report, self._patience, self._record = report, patience, record
        self._beats, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self) -> None:
        """Note a finished step."""
        self._beats += 1

    def _watch(self) -> None:
        tick = min(1.0, self._patience / 4)
        beats, waited = self._beats, 0.0
        while not self._ended.wait(tick):
            waited = waited + tick if beats == self._beats else 0.0
            beats = self._beats
            if waited >= self._patience:
                with contextlib.suppress(OSError), self._report.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                print(
                    f"dsd-lab: no step in {waited:g} s; the stacks are in {self._report}", file=sys.stderr, flush=True
                )
                with contextlib.suppress(Exception):  # also on a full disk the process must end
                    self._record(f"hang: no step in {waited:g} s, the stacks are in {self._report}")
                os._exit(1)
