"""Proof that what a test started has ended: its processes, the sockets that they listened at, their shared memory."""

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from sweeping import DEADLINE

_MARK = "DSD_LAB_STARTED_BY_TEST"
_LOOK_EVERY = 0.5
"""Seconds between looks at what the processes hold: a dead one cannot be asked any more."""
_MEMORY = Path("/dev/shm")


class Tree:
    """The processes that were started with a mark in their environment, and all that descend from them.

    Ray's workers write their titles over their environments, so that descent counts too, and what was seen once is
    known from then on by its number and its start.

    Args:
        mark: value of the environment variable.
    """

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._before = set(os.listdir(_MEMORY))
        self._known: set[tuple[int, str]] = set()
        self._sockets: dict[int, str] = {}
        self._memory: dict[str, str] = {}

    def processes(self) -> dict[int, str]:
        """Those that live, by number, with their names."""
        living: dict[int, tuple[int, str, str]] = {}
        ours: set[int] = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
                state, parent, started = (rest.split()[i] for i in (0, 1, 19))
                if state != "Z":
                    living[int(process.name)] = int(parent), started, name
                    if self._mark in (process / "environ").read_bytes().split(b"\0"):
                        ours.add(int(process.name))
        ours |= {number for number, (_, started, _) in living.items() if (number, started) in self._known}
        while born := {number for number, (parent, _, _) in living.items() if parent in ours} - ours:
            ours |= born
        self._known |= {(number, living[number][1]) for number in ours}
        return {number: living[number][2] for number in sorted(ours)}

    def look(self) -> None:
        """Note what they hold now."""
        listened = listening()
        for process, name in self.processes().items():
            with contextlib.suppress(OSError):  # it has just ended
                for handle in os.listdir(f"/proc/{process}/fd"):
                    target = os.readlink(f"/proc/{process}/fd/{handle}")
                    if target.startswith("socket:["):
                        inode = int(target.removeprefix("socket:[").removesuffix("]"))
                        if inode in listened:
                            self._sockets[inode] = name
                    elif target.startswith(f"{_MEMORY}/"):
                        file = target.removeprefix(f"{_MEMORY}/").removesuffix(" (deleted)").partition("/")[0]
                        if file not in self._before:
                            self._memory[file] = name

    def left(self) -> list[str]:
        """What is left of them: processes, sockets that anybody still listens at, files in shared memory."""
        self.look()
        assert self._known, "no process was started with the mark: it proves nothing"
        open_sockets, files = listening(), set(os.listdir(_MEMORY))
        return [
            *(f"process {number} {name}" for number, name in self.processes().items()),
            *(f"a socket of {name}" for inode, name in self._sockets.items() if inode in open_sockets),
            *(f"{_MEMORY / file} of {name}" for file, name in self._memory.items() if file in files),
        ]

    def end(self) -> None:
        """Kill what lives of them."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def nothing_left(within: float = DEADLINE) -> Iterator[Tree]:
    """What is started in the block ends with it, or soon after.

    Two of Ray's helpers, which touch no trial, take a minute to notice that a driver was killed.

    Args:
        within: seconds after the block.
    """
    mark = uuid.uuid4().hex
    tree, over = Tree(mark), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            tree.look()

    watcher = threading.Thread(target=watch, daemon=True)
    os.environ[_MARK] = mark
    watcher.start()
    try:
        yield tree
    except BaseException:
        tree.end()  # a test that failed burdens no other
        raise
    finally:
        del os.environ[_MARK]
        over.set()
        watcher.join()
    until = time.monotonic() + within
    while left := tree.left():
        if time.monotonic() > until:
            tree.end()
            raise AssertionError(f"still there {within:g} s later: {left}")
        threading.Event().wait(0.1)


def listening() -> set[int]:
    """Inodes of all sockets of this machine that wait for connections."""
    found = set()
    for kind in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6 here
            for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A":  # TCP_LISTEN
                    found.add(int(columns[9]))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[3], 16) & 0x10000:  # SO_ACCEPTCON
            found.add(int(columns[6]))
    return found
