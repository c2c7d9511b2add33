"""Stopping in good order: signals that ask for it, the file that carries the wish to workers, and trials that hang."""

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
"""What schedulers and terminals send before they take a machine away."""
_GRACE = 8.0
"""Seconds in which trials that were asked to stop can save a checkpoint: a step and a write."""
_LOOK_EVERY = 0.5
"""Seconds between looks at a stop file."""


class Terminated(BaseException):
    """A terminating signal arrived. Not an `Exception`, so that nothing takes it for a fault of its own."""


def raise_terminated(signum: int, frame: FrameType | None) -> None:
    """A handler of terminating signals."""
    raise Terminated


@contextlib.contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals while the block lasts; one that this process was told to ignore (`nohup`) stays ignored."""
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
    """Notes the first signal that asks to stop, while its `with` block lasts; a second one ends the process at once."""

    def __init__(self) -> None:
        self.arrived: int | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        self._restore.enter_context(handled((*TERMINATING, signal.SIGINT), self._note))
        return self

    def __exit__(self, *fault: object) -> None:
        self._restore.close()

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.arrived is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after any other."""
        return INTERRUPTED if self.arrived == signal.SIGINT else TERMINATED

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.arrived is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        self.arrived = number


class StopFile:
    """Whether a file is there that asks to stop; looks twice a second, since storage may be far away."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked, self._seen = path, -_LOOK_EVERY, False

    def __call__(self) -> bool:
        """Whether to stop."""
        now = time.monotonic()
        if not self._seen and now - self._looked >= _LOOK_EVERY:
            self._looked, self._seen = now, self._path.exists()
        return self._seen


class HeldSignals:
    """Keeps signals, while its `with` block lasts, until `look` is called where an exception does no harm.

    The first asks the workers to stop, and is let through when they have or were given their time; a second
    one does not wait. What handled the signals before handles them then.

    Args:
        stop: file that asks the workers to stop.
        working: whether any of them still works.
    """

    def __init__(self, stop: Path, working: Callable[[], bool]) -> None:
        self._stop, self._working = stop, working
        self._arrived: list[int] = []
        self._until: float | None = None
        self._looked = False
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *TERMINATING):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
            self._take()
        return self

    def __exit__(self, kind: object, *fault: object) -> None:
        self._stop.unlink(missing_ok=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self._pass_on()

    def look(self) -> None:
        """Let a signal through if it is time."""
        if not self._looked:
            self._looked = True
            self._take()  # Tune puts a handler of its own on SIGUSR1 when it starts
        if not self._arrived:
            return
        if self._until is None:
            self._until = time.monotonic() + _GRACE
            with contextlib.suppress(OSError):  # on a full disk they stop without a checkpoint
                self._stop.touch()
        if time.monotonic() > self._until or len(self._arrived) > 1 or not self._working():
            self._pass_on()

    def _take(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _pass_on(self) -> None:
        for number in self._arrived:
            self._handlers[number](number, None)
