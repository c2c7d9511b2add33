"""The proof that nothing is left finds what is left."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import nothing_left
from sweeping import wait_until

LISTENER = """
import socket, sys
server, link = socket.create_server(("127.0.0.1", 0)), socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(link, [b"here"], [server.fileno()])
print("passed on", flush=True)
sys.stdin.read()
"""
WRITER = """
import sys, tempfile
file = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="dsd-lab-test-", delete=False)
print(file.name, flush=True)
sys.stdin.read()
"""


PARENT = """
import subprocess, sys
print(subprocess.Popen(["sleep", "60"], env={}, stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def alive():
    """Numbers of the processes that have not ended, whether or not anybody has taken note of their ends."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if not path.read_text().rpartition(")")[2].startswith(" Z"):
                found.add(int(path.parent.name))
    return found


@contextlib.contextmanager
def python(program, *handles):
    """A process that prints one line and lives as long as the block; yields the line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "pass_fds": handles}
    with subprocess.Popen([sys.executable, "-c", program, *map(str, handles)], **pipes) as process:
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.fixture
def started():
    """Where a test notes the processes that it started."""
    found = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def test_what_ends_with_the_block_is_not_left():
    program = "import socket, sys; held = socket.create_server(('', 0)); print(1, flush=True); sys.stdin.read()"
    with nothing_left(within=5.0) as tree, python(program):
        assert len(tree.processes()) == 1


def test_a_process_that_lives_on_is_found_and_ended(started):
    def leave():
        with nothing_left(within=0.2):
            started.append(subprocess.Popen(["sleep", "60"]))

    with pytest.raises(AssertionError, match=r"process \d+ sleep"):
        leave()
    assert started[0].wait(5) == -signal.SIGKILL


def test_a_process_without_the_mark_is_found_by_its_descent():
    heirs = []

    def leave():
        with nothing_left(within=0.2) as tree, python(PARENT) as line:
            heirs.append(int(line))
            assert heirs[0] in tree.processes()

    with pytest.raises(AssertionError, match=r"process \d+ sleep"):
        leave()
    wait_until(lambda: heirs[0] not in alive(), "it is killed")


def test_a_block_that_starts_nothing_proves_nothing():
    def prove():
        with nothing_left():
            pass

    with pytest.raises(AssertionError, match="it proves nothing"):
        prove()


def test_a_test_that_fails_leaves_no_process_and_keeps_its_own_error(started):
    def fail():
        with nothing_left():
            started.append(subprocess.Popen(["sleep", "60"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].wait(5) == -signal.SIGKILL


def test_a_socket_that_a_stranger_was_given_is_found():
    """The stranger is this process."""
    mine, its = socket.socketpair()
    given = []

    def leave():
        with nothing_left(within=0.2) as tree:
            with python(LISTENER, its.fileno()):
                given.extend(socket.recv_fds(mine, 4, 1)[1])
                tree.look()
            assert tree.processes() == {}

    with mine, its, pytest.raises(AssertionError, match="a socket of python"):
        leave()
    os.close(given[0])


def test_shared_memory_that_nobody_holds_any_more_is_found():
    names = []

    def leave():
        with nothing_left(within=0.2) as tree:
            with python(WRITER) as name:
                names.append(name)
                tree.look()
            assert tree.processes() == {}

    try:
        with pytest.raises(AssertionError, match="/dev/shm/dsd-lab-test-"):
            leave()
    finally:
        Path(names[0]).unlink()
