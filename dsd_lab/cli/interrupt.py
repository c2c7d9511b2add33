"""A line at once after Ctrl-C: what was asked to stop may be busy for seconds in code that sees no signal."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from dsd_lab.runs.signals import TERMINATING

STOPPING = "stopping: trials that run save a checkpoint first, which takes seconds; Ctrl-C again does not wait for them"
AT_ONCE = "stopping at once; trials go on from their last checkpoints"


@contextlib.contextmanager
def answered_at_once(say: Callable[[str], None]) -> Iterator[None]:
    """Say, while the block lasts, that a signal that asks to stop has arrived; what handles it stays as it is.

    Python runs handlers in the main thread, between two of its instructions; the number of a signal is
    written to the other end of `set_wakeup_fd` by the C handler itself, and read here by a thread.

    Args:
        say: prints a line; called from that thread.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal can be watched
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(reader, say), daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        watching.join()
        reader.close()


def _watch(reader: socket.socket, say: Callable[[str], None]) -> None:
    lines = iter((STOPPING, AT_ONCE))
    while numbers := reader.recv(64):
        for number in numbers:
            if number in (signal.SIGINT, *TERMINATING) and (line := next(lines, None)) is not None:
                with contextlib.suppress(OSError):  # nobody reads any more
                    say(line)
