"""Acknowledge Ctrl-C at once, since the process may be busy for seconds in code that handles no signals."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from dsd_lab.runs.signals import TERMINATING

STOPPING = "stopping: running trials save a checkpoint, which takes seconds; press Ctrl-C again to stop at once"
AT_ONCE = "stopping at once; trials resume from their last checkpoints"


@contextlib.contextmanager
def acknowledge_signals(say: Callable[[str], None], stopping: str = STOPPING) -> Iterator[None]:
    """Print a line within the block when a stop signal arrives. Its handler stays in place.

    Python runs handlers in the main thread between instructions. The C handler, however, writes the signal's number
    to `set_wakeup_fd` at once, and a thread reads it here.

    Args:
        say: prints a line; called from the thread.
        stopping: the line for the first signal.
    """
    if threading.current_thread() is not threading.main_thread():  # signals can only be watched in the main thread
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(reader, say, stopping), daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        watching.join()
        reader.close()


def _watch(reader: socket.socket, say: Callable[[str], None], stopping: str) -> None:
    lines = iter((stopping, AT_ONCE))
    while numbers := reader.recv(64):
        for number in numbers:
            if number in (signal.SIGINT, *TERMINATING) and (line := next(lines, None)) is not None:
                with contextlib.suppress(OSError):  # stderr is closed
                    say(line)
