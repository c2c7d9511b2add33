"""A machine that is taken away: a signal gives a checkpoint and exit code 143, the same command goes on, bit by bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leftovers import nothing_left
from sweeping import (
    DEADLINE,
    outcome,
    run,
    running,
    spooled_steps,
    start,
    stored_steps,
    wait_until,
)

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.errors import INTERRUPTED, OK, TERMINATED
from dsd_lab.home.home import Home
from dsd_lab.runs.signals import StopFile

ROOT = Path(__file__).resolve().parents[1]
GRACE = 10.0
"""Seconds between the signal and the checkpoint that FAULTS and schedulers allow."""
HEARTBEAT = {"initial_delay": 500, "period": 300, "timeout": 1000}
"""A tenth of the milliseconds in which Ray asks whether a node lives, so that seconds stand for a minute."""
RARELY = ("--set", "observation.checkpoint_every=100000")


def told(found):
    """An outcome without the lines that tell of checkpoints, and so without line numbers."""
    step, digest, events, pictures = found
    lines = [{k: v for k, v in line.items() if k != "n"} for line in events if line["kind"] != "checkpoint"]
    return step, digest, lines, pictures


def saved(home, trial):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(home.trial(trial).checkpoints)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGTERM, TERMINATED),
        (signal.SIGUSR1, TERMINATED),
        (signal.SIGHUP, TERMINATED),
        (signal.SIGINT, INTERRUPTED),
    ],
    ids=lambda x: x.name if isinstance(x, signal.Signals) else "",
)
def test_f8_a_signal_gives_train_a_checkpoint_within_10_seconds_and_it_ends_bit_equal(
    sent, code, undisturbed, tmp_path
):
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    arguments = ("train", undisturbed.spec, "--variant", "dsd", "--no-tracking", "--home", home.root, *RARELY)
    process = start(*arguments)
    wait_until(lambda: running(home, trial, 30), "the trial is under way", process)
    assert saved(home, trial) == []
    process.send_signal(sent)
    began = time.monotonic()
    wait_until(lambda: saved(home, trial), "a checkpoint")
    assert time.monotonic() - began < GRACE
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, output
    assert home.trial(trial).state() == "interrupted" and "Traceback" not in output
    (step,) = saved(home, trial)
    assert home.trial(trial).status().step == step
    assert run(*arguments)[0] == OK
    assert told(outcome(home, trial)) == told(undisturbed.outcomes[trial])


@pytest.mark.slow
def test_f8_a_signal_gives_every_trial_of_a_sweep_a_checkpoint_and_the_sweep_ends_bit_equal(undisturbed, tmp_path):
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    arguments = ("sweep", undisturbed.spec, "--home", home.root, *RARELY)
    with nothing_left():
        sweep = start(*arguments)
        wait_until(lambda: running(home, trial, 30), "the long trial is under way", sweep)
        assert saved(home, trial) == []
        sweep.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        wait_until(lambda: saved(home, trial), "a checkpoint")
        assert time.monotonic() - began < GRACE
        output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == TERMINATED, output
    assert home.trial(trial).status().state == "interrupted" and "Traceback" not in output
    assert list((home.root / "ray").glob("stop-*")) == []
    assert run(*arguments)[0] == OK
    ids = [t.id for t in undisturbed.plan.trials]
    assert {i: told(outcome(home, i)) for i in ids} == {i: told(undisturbed.outcomes[i]) for i in ids}
    assert stored_steps(home) == spooled_steps(home, ids)


@pytest.mark.slow
def test_f8_a_machine_that_sleeps_goes_on_and_no_trial_is_taken_for_one_that_hangs(undisturbed, tmp_path):
    """All processes of a sweep stand still for longer than a trial may hang: driver, workers, Ray's own, the uploader."""
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    patience, away = 3.0, 6.0
    often = {f"RAY_health_check_{name}_ms": str(value) for name, value in HEARTBEAT.items()}
    arguments = ("sweep", undisturbed.spec, "--home", home.root, "--set", f"resources.patience={patience}")
    with nothing_left() as tree:
        sweep = start(*arguments, env=os.environ | often)
        wait_until(lambda: running(home, ids[0], 30), "the long trial is under way", sweep)
        asleep = tree.processes()
        assert len(asleep) > 5
        for process in asleep:
            os.kill(process, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() - stopped > away, "it is away for longer than it may hang")
        assert home.trial(ids[0]).state() == "running"
        for process in asleep:
            os.kill(process, signal.SIGCONT)
        output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == OK, output
    assert [home.trial(i).status().attempt for i in ids] == [1, 1] and not list(home.root.glob("trials/*/hang.txt"))
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    assert stored_steps(home) == spooled_steps(home, ids)


@pytest.mark.slow
def test_f8_and_f16_a_second_signal_does_not_wait_and_a_process_that_ignores_signals_is_ended(undisturbed, tmp_path):
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    with nothing_left():
        sweep = start("sweep", undisturbed.spec, "--home", home.root, "--no-tracking", "--only", "variant=dsd")
        worker = wait_until(lambda: running(home, trial, 30), "the trial is under way", sweep)
        os.kill(worker, signal.SIGSTOP)  # it will not save anything
        sweep.send_signal(signal.SIGINT)
        wait_until(lambda: list((home.root / "ray").glob("stop-*")), "the worker is asked to stop", sweep)
        sweep.send_signal(signal.SIGINT)
        output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == INTERRUPTED and "Traceback" not in output, output
    assert home.trial(trial).state() == "interrupted"


def test_a_stop_file_is_seen_once_it_is_there(tmp_path):
    path = tmp_path / "stop"
    path.touch()
    assert StopFile(path)()
    assert not StopFile(tmp_path / "none")()


SUBMIT = ROOT / "experiments" / "slurm.sh"


@pytest.mark.slow
def test_the_slurm_script_passes_the_signal_on_and_asks_to_be_queued_again(undisturbed, tmp_path):
    """Slurm's part is played by the test: it signals the batch shell, and `scontrol` is a command that notes its arguments."""
    home, trial = Home(tmp_path / "home"), undisturbed.plan.trials[0].id
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, what in (
        ("scontrol", f'echo "$@" >> {tmp_path}/scontrol'),
        ("dsd-lab", f'exec {sys.executable} -m dsd_lab "$@"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{what}\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "8"}
    environment |= {"SPEC": str(undisturbed.spec), "DSD_LAB_HOME": str(home.root)}

    def submit(**more):
        return subprocess.Popen(
            ["bash", str(SUBMIT), *RARELY],
            env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    batch = submit(SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    wait_until(lambda: running(home, trial, 30), "the trial is under way", batch)
    batch.send_signal(signal.SIGUSR1)  # `--signal=B:USR1@120`: the batch shell alone
    output, _ = batch.communicate(timeout=DEADLINE)
    assert batch.returncode == TERMINATED and saved(home, trial), output
    assert (tmp_path / "scontrol").read_text() == "requeue 7_0\n"
    batch = submit()
    output, _ = batch.communicate(timeout=DEADLINE)
    assert batch.returncode == OK, output
    assert (tmp_path / "scontrol").read_text() == "requeue 7_0\n"
    ids = [t.id for t in undisturbed.plan.trials]
    assert {i: told(outcome(home, i)) for i in ids} == {i: told(undisturbed.outcomes[i]) for i in ids}
    assert stored_steps(home) == spooled_steps(home, ids)
