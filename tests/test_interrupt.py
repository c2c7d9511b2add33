"""Ctrl-C is answered within half a second, whatever the process is at; the shutdown itself may take longer."""

import hashlib
import os
import signal
import threading
import time

import psutil
import pytest
from leftovers import nothing_left
from sweeping import BASE, DEADLINE, LONG, running, start, wait_until, write_spec

from dsd_lab.cli.interrupt import AT_ONCE, STOPPING, acknowledge_signals
from dsd_lab.errors import INTERRUPTED
from dsd_lab.home.home import Home

SOON = 0.5
"""Seconds from Ctrl-C to the line that says so."""


class Reader(threading.Thread):
    """Lines of a process, with the time at which each came."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.lines = process, []
        self.start()

    def run(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def when(self, text):
        return next((at for at, line in self.lines if text in line), None)


def interrupted(process, reader, line=STOPPING):
    """Send Ctrl-C, and return the seconds until it is answered."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    return wait_until(lambda: reader.when(line), "Ctrl-C is answered", process) - began


@pytest.fixture
def long_spec(tmp_path):
    return write_spec(tmp_path, base={key: BASE.get(key, {}) | LONG[key] for key in LONG})


@pytest.mark.slow
def test_ctrl_c_is_answered_at_once_while_ray_starts_and_while_trials_run(long_spec, tmp_path):
    home = Home(tmp_path / "home")
    arguments = ("sweep", long_spec, "--home", home.root, "--no-tracking")
    with nothing_left():
        sweep = start(*arguments)
        reader = Reader(sweep)
        wait_until(lambda: reader.when("1 of 1 trials to run"), "Ray is about to start", sweep)
        wait_until(lambda: psutil.Process(sweep.pid).children(), "Ray starts", sweep)
        assert interrupted(sweep, reader) < SOON
        assert sweep.wait(DEADLINE) == INTERRUPTED

        sweep = start(*arguments)
        reader = Reader(sweep)
        (trial,) = (t.name for t in wait_until(lambda: list(home.root.glob("trials/*")), "it starts", sweep))
        wait_until(lambda: running(home, trial, 10), "the trial is under way", sweep)
        assert interrupted(sweep, reader) < SOON
        assert sweep.wait(DEADLINE) == INTERRUPTED
        reader.join()
        assert reader.lines[-1][1] == "dsd-lab: interrupted; the same command resumes"
        assert not any("Traceback" in line for _, line in reader.lines)


@pytest.mark.slow
def test_ctrl_c_is_answered_at_once_by_train(long_spec, tmp_path):
    home = Home(tmp_path / "home")
    process = start("train", long_spec, "--variant", "dsd", "--no-tracking", "--home", home.root)
    reader = Reader(process)
    (trial,) = (t.name for t in wait_until(lambda: list(home.root.glob("trials/*")), "it starts", process))
    wait_until(lambda: running(home, trial, 10), "the trial is under way", process)
    assert interrupted(process, reader) < SOON
    assert process.wait(DEADLINE) == INTERRUPTED and home.trial(trial).state() == "interrupted"


@pytest.fixture
def noted():
    """Signals that reach Python's own handlers."""
    found = []
    before = {n: signal.signal(n, lambda number, frame: found.append(number)) for n in (signal.SIGINT, signal.SIGALRM)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_is_answered_while_the_main_thread_is_in_code_that_sees_no_signal(noted):
    said = []
    with acknowledge_signals(lambda line: said.append((line, list(noted)))):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # one call into C, for a second or more
    assert said == [(STOPPING, [])] and noted == [signal.SIGINT]


def test_a_second_signal_is_answered_and_one_that_asks_for_nothing_is_not(noted):
    said = []
    with acknowledge_signals(said.append):
        os.kill(os.getpid(), signal.SIGALRM)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == [STOPPING, AT_ONCE]
    assert noted == [signal.SIGALRM, *[signal.SIGINT] * 3]  # what handled them before does so still
    assert signal.set_wakeup_fd(-1) == -1


def test_a_reader_that_has_gone_away_harms_nothing(noted):
    def gone(line):
        raise BrokenPipeError

    with acknowledge_signals(gone):
        os.kill(os.getpid(), signal.SIGINT)
    assert noted == [signal.SIGINT]
