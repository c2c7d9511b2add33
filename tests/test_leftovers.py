"""The proof that nothing is left finds what is left."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import nothing_left

LISTENER = """
import os, socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
environment = {k: v for k, v in os.environ.items() if not k.startswith("DSD_LAB_STARTED")}
heir = subprocess.Popen(["sleep", "60"], env=environment, pass_fds=[server.fileno()], stdout=subprocess.DEVNULL)
print(heir.pid, flush=True)
sys.stdin.read()
"""
WRITER = """
import sys, tempfile
file = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="dsd-lab-test-", delete=False)
print(file.name, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def python(program):
    """A process that prints one line and lives as long as the block; yields the line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
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


def test_a_test_that_fails_leaves_no_process_and_keeps_its_own_error(started):
    def fail():
        with nothing_left():
            started.append(subprocess.Popen(["sleep", "60"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].wait(5) == -signal.SIGKILL


def test_a_socket_that_a_stranger_inherited_is_found():
    heirs = []

    def leave():
        with nothing_left(within=0.2) as tree:
            with python(LISTENER) as line:
                heirs.append(int(line))
                tree.look()
            assert tree.processes() == {}

    try:
        with pytest.raises(AssertionError, match="a socket of python"):
            leave()
    finally:
        os.kill(heirs[0], signal.SIGKILL)


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
