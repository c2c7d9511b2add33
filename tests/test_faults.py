"""Faults, injected for real into trials, files and devices; the numbers are those of the fault catalogue.

A fault of a sweep or of the store is in test_sweep.py, test_store_faults.py or test_preemption.py. Where a process has to
die between two instructions, a forked child does the work and kills itself there.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sweeping import (
    DEADLINE,
    VARIANTS,
    die,
    events,
    finish,
    in_child,
    outcome,
    run,
    train_here,
    write_spec,
)

from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, TRIALS_FAILED
from dsd_lab.home.lookup import manifest_of
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.runs.spool_writer import Spool
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.mlflow_store import Store

CPU = torch.device("cpu")


def dying(real, at):
    """`real`, except that the call number `at` kills the process before anything is done."""
    calls = []

    def call(*arguments, **options):
        if len(calls) == at:
            die()
        calls.append(real)
        return real(*arguments, **options)

    return call


def torn(self, entry):
    """The spool's writing of a line, killed in the middle of the seventh."""
    if self._next == 6:
        self._file.write(b'{"n": 6, "time": 17')
        self._file.flush()
        die()
    return WRITE(self, entry)


WRITE = Spool._write
POINTS = {
    "before the tensors": (os, "fsync", lambda real: dying(real, 3)),
    "between tensors and manifest": (os, "fsync", lambda real: dying(real, 4)),
    "between manifest and name": (Path, "rename", lambda real: dying(real, 1)),
    "between the name and its flush": (os, "fsync", lambda real: dying(real, 7)),
    "between the name and the removal of older ones": (shutil, "rmtree", lambda real: dying(real, 0)),
    "between the checkpoint and its line": (Spool, "append", lambda real: dying(real, 3)),
    "inside a line of the spool": (Spool, "_write", lambda real: torn),
}


@pytest.mark.parametrize("point", POINTS)
def test_f3_a_kill_between_any_two_steps_of_writing_loses_nothing(point, whole, home, monkeypatch):
    def work():
        place, name, make = POINTS[point]
        monkeypatch.setattr(place, name, make(getattr(place, name)))
        finish(home, whole.trial)

    assert in_child(work) == -signal.SIGKILL
    assert home.trial(whole.trial.id).state() == "interrupted"
    assert finish(home, whole.trial)[-1] == "done"
    assert outcome(home, whole.trial.id) == whole.outcome


def test_a_resumed_trial_tells_from_its_first_moment_the_step_that_it_goes_on_from(whole, home):
    folder = home.trial(whole.trial.id)
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (folder.checkpoints / "step-000000004").exists():
        next(progress)
    progress.close()
    again = run_trial(home, whole.trial, [], DataShelf())
    first = next(again)
    assert (first.step, folder.status().step, folder.status().attempt) == (4, 4, 2)
    again.close()


def test_f5_a_flipped_bit_in_a_checkpoints_state_costs_what_came_after_the_one_before_and_is_told(whole, home, capsys):
    folder = home.trial(whole.trial.id)
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (folder.checkpoints / "step-000000008").exists():
        next(progress)
    progress.close()
    path = folder.checkpoints / "step-000000008" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"device": "cpu"', b'"device": "cpt"'))
    again = run_trial(home, whole.trial, [], DataShelf())
    steps = [next(again).step for _ in range(2)]
    assert folder.status().damaged == ["damaged-step-000000008"] and steps[1] == 6  # the first record after step 4
    again.close()
    train, sweep = ("train", "--variant", "dsd"), ("sweep",)
    for verb in (train, sweep):  # nothing is left to be done for the second
        arguments = [verb[0], str(whole.spec), *verb[1:], "--home", str(home.root), "--no-tracking"]
        assert main(arguments) == OK
        assert "skipped damaged checkpoints: damaged-step-000000008" in capsys.readouterr().out
    assert outcome(home, whole.trial.id) == whole.outcome


# -- A full disk ---------------------------------------------------------------------------------------

LIMITS = {"checkpoint": 60_000, "spool": 2_000}


@pytest.mark.parametrize("what", LIMITS)
def test_f4_a_disk_that_is_full_fails_the_trial_says_so_and_leaves_the_older_checkpoint(what, whole, home):
    """The largest size of a file stands for the disk: the kernel refuses to write past it, as it does on a full one."""
    folder = home.trial(whole.trial.id)

    def work():
        progress = run_trial(home, whole.trial, [], DataShelf())
        while not (folder.checkpoints / "step-000000004").exists():
            next(progress)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS[what],) * 2)
        for _ in progress:
            pass

    assert in_child(work) == 0
    status = folder.status()
    assert status.state == "interrupted" and "the disk is full" in status.error and "\n" not in status.error
    assert load_checkpoint(list_checkpoints(folder.checkpoints)[0])
    assert not list(folder.checkpoints.glob(".writing-*"))
    assert finish(home, whole.trial)[-1] == "done"
    assert outcome(home, whole.trial.id) == whole.outcome


TMPFS = """
import json, subprocess, sys
from pathlib import Path
from sweeping import command
home = Path("/mnt/home")
train = command("train", sys.argv[1], "--variant", "dsd", "--no-tracking", "--home", home, "--set", "training.steps=200")
done = subprocess.run(train, capture_output=True, text=True)
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
(trial,) = home.glob("trials/*")
whole = [load_checkpoint(path)[1]["told"] for path in list_checkpoints(trial / "checkpoints")]
sweep = subprocess.run(command("sweep", sys.argv[1], "--no-tracking", "--home", home, "--set", "seeds=[7]"), capture_output=True, text=True)
print(json.dumps([done.returncode, done.stdout + done.stderr, len(whole), sweep.returncode, sweep.stderr]))
"""


@pytest.mark.slow
def test_f4_a_small_file_system_that_fills_up_is_told_of_and_refused_beforehand(tmp_path):
    """In a namespace of its own, a disk of 1.5 MB takes some checkpoints and not all."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace")
    spec = write_spec(tmp_path, base={"observation": {"checkpoints_kept": 50}})
    mounted = 'mount -t tmpfs -o size=1500k none /mnt && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", sys.executable, "-c", TMPFS, str(spec)],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    code, output, whole, refused, refusal = json.loads(done.stdout.splitlines()[-1])
    assert code in (TRIALS_FAILED, NO_RESOURCES) and "the disk is full" in output and "Traceback" not in output
    assert whole >= 1
    line = refusal.splitlines()[-1]
    assert refused == NO_RESOURCES and "the sweep needs about" in line and "are free; free space" in line


# -- Numbers, memory, signals --------------------------------------------------------------------------


def test_f6_a_loss_that_turns_infinite_ends_a_trial_as_diverged_and_no_figure_is_of_it(tmp_path, home):
    spec = write_spec(tmp_path, {"wild": VARIANTS["wild"]})
    (trial,) = train_here(home, spec).trials
    folder = home.trial(trial.id)
    assert folder.state() == "diverged" and "is not finite" in folder.status().error
    for text in folder.spool.read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the spool"))
    Store(home).sync(manifest_of(load_sweep(spec)))
    # MLflow would keep an infinity as 1.8e308.
    stored = Store(home).read(manifest_of(load_sweep(spec)), tmp_path)[0].metrics
    assert stored and all(abs(value) < 1e300 for value in stored.values())


def test_f7_memory_that_runs_out_is_a_failure_that_says_so_and_is_not_tried_again_as_it_was(home, tmp_path):
    spec = write_spec(tmp_path, base={"training": {"batch_size": 200_000, "steps": 1}})
    (trial,) = load_sweep(spec).trials
    shelf = DataShelf()
    shelf.get(trial, home)

    def work():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27,) * 2)
        for _ in run_trial(home, trial, [], shelf):
            pass

    assert in_child(work) == 0
    status = home.trial(trial.id).status()
    assert status.state == "failed" and status.attempt == 1
    assert "memory" in status.error
    # A failed trial is left alone until somebody asks for it; Ray is not even started.
    home.write_manifest(manifest_of(load_sweep(spec)))
    assert run("sweep", spec, "--home", home.root, "--no-tracking")[0] == TRIALS_FAILED
    assert home.trial(trial.id).status().attempt == 1 and not (home.root / "ray").exists()


def test_f13_a_clock_that_jumps_back_changes_no_result_and_loses_no_metric(whole, home, monkeypatch):
    real, ticks = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * next(ticks))
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (home.trial(whole.trial.id).checkpoints / "step-000000004").exists():
        next(progress)
    progress.close()
    assert finish(home, whole.trial)[-1] == "done"
    monkeypatch.undo()
    assert outcome(home, whole.trial.id) == whole.outcome
    manifest = manifest_of(load_sweep(whole.spec))
    assert Store(home).sync(manifest) == len(events(home, whole.trial.id))
    assert Store(home).sync(manifest) == 0


def test_f13_a_trial_that_began_on_another_kind_of_device_is_not_continued_silently(whole, home):
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (home.trial(whole.trial.id).checkpoints / "step-000000004").exists():
        next(progress)
    progress.close()
    (newest,) = list_checkpoints(home.trial(whole.trial.id).checkpoints)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["state"]["device"] = "cuda"
    del manifest["manifest_sha256"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert finish(home, whole.trial)[-1] == "failed"
    assert "trained on cuda so far and cannot resume on cpu" in home.trial(whole.trial.id).status().error


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_f14_a_trial_that_other_training_code_began_is_not_continued_silently(state, whole, home, capsys):
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (home.trial(whole.trial.id).checkpoints / "step-000000004").exists():
        next(progress)
    progress.close()
    home.trial(whole.trial.id).write_status(state=state, code="abcdefabcdef")
    before = home.trial(whole.trial.id).status()
    for verb in (["sweep", "--retry-failed"], ["train", "--variant", "dsd"]):
        code = main([verb[0], str(whole.spec), *verb[1:], "--home", str(home.root), "--no-tracking"])
        assert code == BAD_INPUT
        assert "began with other training code than the present" in capsys.readouterr().err
    assert home.trial(whole.trial.id).status() == before


@pytest.mark.slow
def test_f15_a_package_that_is_not_there_is_one_line_and_exit_code_4(whole, home):
    program = "import sys; sys.modules[sys.argv.pop(1)] = None; from dsd_lab.cli.main import main; sys.exit(main())"
    sweep = ["sweep", str(whole.spec)]
    cases = [*((n, [*sweep, "--no-tracking"]) for n in ("timm", "ray")), ("mlflow", sweep), ("mlflow", ["report"])]
    for missing, verb in cases:
        train_here(home, whole.spec, "seeds=[3]")
        command = [sys.executable, "-c", program, missing, *verb, "--home", str(home.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == NO_RESOURCES, done.stderr
        assert f"dsd-lab: {missing}" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_f15_a_gpu_that_is_not_there_is_a_failure_that_says_so(home, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = write_spec(tmp_path, base={"resources": {"gpus": 1.0}})
    assert main(["train", str(spec), "--variant", "dsd", "--home", str(home.root), "--no-tracking"]) == TRIALS_FAILED
    (trial,) = load_sweep(spec).trials
    assert "resources.gpus is 1, but this process sees no GPU" in home.trial(trial.id).status().error
