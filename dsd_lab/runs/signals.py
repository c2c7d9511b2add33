"""Graceful shutdown: signal handlers and the stop file that forwards a stop to workers."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from dsd_lab.errors import INTERRUPTED, TERMINATED

TERMINATING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals of schedulers and terminals before they take a machine away."""
_GRACE = 8.0
"""Seconds for running trials to save a checkpoint after a stop: one step and one write."""
_POLL_SECONDS = 0.5
"""Seconds between checks of a stop file."""


class Terminated(BaseException):
    """A terminating signal arrived. Not an `Exception`, so that no handler takes it for an error."""


def raise_terminated(signum: int, frame: FrameType | None) -> None:
    """Handler of terminating signals."""
    raise Terminated


@contextlib.contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals within the block. A signal that this process ignores (`nohup`) stays ignored."""
    before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


class StopSignals:
    """Records the first stop signal within the `with` block; a second one ends the process at once."""

    def __init__(self) -> None:
        self.arrived: int | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        self._restore.enter_context(handled((*TERMINATING, signal.SIGINT), self._on_signal))
        return self

    def __exit__(self, *fault: object) -> None:
        self._restore.close()

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.arrived is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 143."""
        return INTERRUPTED if self.arrived == signal.SIGINT else TERMINATED

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.arrived is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.arrived = number


class StopFile:
    """Whether a stop file exists. Checks twice a second, since storage may be slow."""

    def __init__(self, path: Path) -> None:
        self._path, self._checked, self._seen = path, -_POLL_SECONDS, False

    def __call__(self) -> bool:
        """Whether to stop."""
        now = time.monotonic()
        if not self._seen and now - self._checked >= _POLL_SECONDS:
            self._checked, self._seen = now, self._path.exists()
        return self._seen


class DeferredSignals:
    """Defers signals within the `with` block until `deliver` is called where an exception does no harm.

    The first signal asks the workers to stop. It is delivered to the previous handler when they have stopped or the
    grace period is over. A second signal is delivered without waiting.

    Args:
        stop: stop file for the workers.
        working: whether a worker is still busy.
    """

    def __init__(self, stop: Path, working: Callable[[], bool]) -> None:
        self._stop, self._working = stop, working
        self._arrived: list[int] = []
        self._until: float | None = None
        self._installed = False
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *TERMINATING):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
            self._install()
        return self

    def __exit__(self, kind: object, *fault: object) -> None:
        self._stop.unlink(missing_ok=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self._raise()

    def deliver(self) -> None:
        """Deliver a deferred signal if it is time."""
        if not self._installed:
            self._installed = True
            self._install()  # Tune installs a SIGUSR1 handler when it starts
        if not self._arrived:
            return
        if self._until is None:
            self._until = time.monotonic() + _GRACE
            with contextlib.suppress(OSError):  # on a full disk the workers stop without a checkpoint
                self._stop.touch()
        if time.monotonic() > self._until or len(self._arrived) > 1 or not self._working():
            self._raise()

    def _install(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _raise(self) -> None:
        for number in self._arrived:
            self._handlers[number](number, None)
