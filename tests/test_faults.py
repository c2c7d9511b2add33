"""Faults, injected for real into trials, files and devices; the numbers are those of the fault catalogue.

A fault of a sweep or of the store is in test_sweep.py, test_store_faults.py or test_preemption.py. Where a process has to
die between two instructions, a forked child does the work and kills itself there.
"""

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sweeping import (
    DEADLINE,
    EVALUATION,
    VARIANTS,
    events,
    in_child,
    outcome,
    run,
    start,
    train_here,
    wait_until,
    write_idx,
    write_spec,
)

from dsd_lab.cli import main
from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.core.data import DataSet, Images, load_data
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, TRIALS_FAILED
from dsd_lab.evaluation.extractor import extractor_path, load_extractor
from dsd_lab.home import Home
from dsd_lab.running import DataShelf, run_trial
from dsd_lab.specs.fields import Data
from dsd_lab.specs.sweep import load_sweep
from dsd_lab.spool import Spool
from dsd_lab.store import Store
from dsd_lab.verbs.common import manifest_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A spec of one trial and what it comes to where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    spec = write_spec(folder)
    plan = train_here(Home(folder / "home"), spec)
    return SimpleNamespace(spec=spec, trial=plan.trials[0], outcome=outcome(Home(folder / "home"), plan.trials[0].id))


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def finish(home, trial, evaluations=()):
    """Bring a trial to its end here; returns the states that it went through."""
    return list(dict.fromkeys(p.state for p in run_trial(home, trial, list(evaluations), DataShelf())))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


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
    assert status["state"] == "failed" and "the disk is full" in status["error"] and "\n" not in status["error"]
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
from dsd_lab.core.checkpoints import list_checkpoints, load_checkpoint
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
    assert folder.state() == "diverged" and "is not finite" in folder.status()["error"]
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
    shelf.get(trial)

    def work():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27,) * 2)
        for _ in run_trial(home, trial, [], shelf):
            pass

    assert in_child(work) == 0
    status = home.trial(trial.id).status()
    assert status["state"] == "failed" and status["attempt"] == 1
    assert "memory" in status["error"]
    # A failed trial is left alone until somebody asks for it; Ray is not even started.
    home.write_manifest("tiny", manifest_of(load_sweep(spec)))
    assert run("sweep", spec, "--home", home.root, "--no-tracking")[0] == TRIALS_FAILED
    assert home.trial(trial.id).status()["attempt"] == 1 and not (home.root / "ray").exists()


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
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert finish(home, whole.trial)[-1] == "failed"
    assert "trained on cuda so far and would go on on cpu" in home.trial(whole.trial.id).status()["error"]


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
        assert "began with other training code than today's" in capsys.readouterr().err
    assert home.trial(whole.trial.id).status() == before


@pytest.mark.slow
def test_f15_a_package_that_is_not_there_is_one_line_and_exit_code_4(whole, home):
    program = "import sys; sys.modules[sys.argv.pop(1)] = None; from dsd_lab.cli import main; sys.exit(main())"
    for missing, verb in (("timm", ["sweep", str(whole.spec), "--no-tracking"]), ("mlflow", ["report"])):
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
    assert "resources.gpus is 1, but this process sees no GPU" in home.trial(trial.id).status()["error"]


# -- Data and caches -----------------------------------------------------------------------------------


def test_f12_data_that_are_deleted_while_a_trial_trains_are_not_missed_until_it_has_to_begin_again(tmp_path, home):
    folder = tmp_path / "images"
    folder.mkdir()
    write_idx(folder)
    spec = write_spec(tmp_path, base={"data": {"source": "idx", "path": "images"}})
    (trial,) = load_sweep(spec).trials
    progress = run_trial(home, trial, [], DataShelf())
    while not (home.trial(trial.id).checkpoints / "step-000000004").exists():
        next(progress)
    progress.close()
    shutil.rmtree(folder)
    assert finish(home, trial)[-1] == "failed"
    assert "train-images-idx3-ubyte" in home.trial(trial.id).status()["error"]
    assert list_checkpoints(home.trial(trial.id).checkpoints)
    folder.mkdir()
    write_idx(folder)
    assert finish(home, trial)[-1] == "done"


CACHES = {
    "half written": lambda raw, canary: raw[: len(raw) // 2],
    "empty": lambda raw, canary: b"",
    "one byte changed in its header": lambda raw, canary: raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
    "a pickle": lambda raw, canary: b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
}


def test_f22_a_cache_that_is_damaged_is_made_again_and_two_processes_make_it_once(tmp_path, digits):
    train, holdout = (Images(part.pixels[:120], part.labels[:120]) for part in (digits.train, digits.holdout))
    data = DataSet(train, holdout, digits.classes, "few" * 20)  # trained in no time
    path = extractor_path(tmp_path, data.fingerprint)
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                load_extractor(data, tmp_path, CPU)
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    raw = path.read_bytes()
    for damage in CACHES.values():
        path.write_bytes(damage(raw, tmp_path / "canary"))
        load_extractor(data, tmp_path, CPU)
        assert path.read_bytes() == raw
    assert not (tmp_path / "canary").exists()


def test_f23_an_evaluation_that_is_killed_is_made_again_and_nothing_is_trained_for_it(whole, home, monkeypatch):
    assert finish(home, whole.trial)[-1] == "done"
    folder = home.trial(whole.trial.id)
    evaluations = load_sweep(whole.spec, sets=[f"evaluate=[{EVALUATION}]"]).spec.evaluate
    load_extractor(load_data(Data()), home.cache, CPU)

    def work():
        monkeypatch.setattr("dsd_lab.running._save_picture", lambda *_: die())
        finish(home, whole.trial, evaluations)

    before = folder.spool.read_bytes()
    assert in_child(work) == -signal.SIGKILL
    assert folder.state() == "done" and folder.evaluations() == {}
    assert finish(home, whole.trial, evaluations)[-1] == "done"
    assert len(folder.evaluations()) == 1 and folder.spool.read_bytes() == before


# -- Hanging, and many of them -------------------------------------------------------------------------


@pytest.mark.slow
def test_f17_a_trial_that_hangs_ends_with_its_stacks_and_is_taken_up_again(tmp_path, home):
    """Reading its images waits for a pipe that nobody writes to, until the images are put in its place."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_idx(folder)
    (folder / "train-images-idx3-ubyte").rename(tmp_path / "images-for-later")
    os.mkfifo(folder / "train-images-idx3-ubyte.gz")
    spec = write_spec(tmp_path, base={"data": {"source": "idx", "path": "images"}, "resources": {"patience": 2.0}})
    (trial,) = load_sweep(spec).trials
    report = home.trial(trial.id).root / "hang.txt"
    sweep = start("sweep", spec, "--home", home.root, "--no-tracking")
    wait_until(report.exists, "the hang is noticed", sweep)
    (tmp_path / "images-for-later").rename(folder / "train-images-idx3-ubyte")
    output, _ = sweep.communicate(timeout=DEADLINE)
    assert sweep.returncode == OK, output
    assert home.trial(trial.id).state() == "done" and home.trial(trial.id).status()["attempt"] >= 2
    assert "Thread 0x" in report.read_text() and "data.py" in report.read_text()


@pytest.mark.slow
def test_f18_hundreds_of_trials_in_one_process_leave_no_file_open_and_no_memory_taken(tmp_path, home):
    quiet = {"gradient_images": 0, "images": 4, "every": 10}
    spec = write_spec(
        tmp_path, {"control": VARIANTS["control"]}, seeds=list(range(500)),
        base={"training": {"steps": 1}, "probe": quiet, "observation": {"images": 1}},
    )  # fmt: skip
    trials, shelf, seen = load_sweep(spec).trials, DataShelf(), []
    for count, trial in enumerate(trials, 1):
        for _ in run_trial(home, trial, [], shelf):
            pass
        if count % 100 == 0:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            seen.append((len(os.listdir("/proc/self/fd")), resident))
    assert {home.trial(t.id).state() for t in trials} == {"done"}
    assert len({descriptors for descriptors, _ in seen}) == 1
    assert seen[-1][1] - seen[0][1] < 40 * 2**20  # bytes, over 400 trials


# -- Reports -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_f19_a_report_of_partial_failed_diverged_missing_and_repeated_results_says_so(tmp_path, home):
    variants = {k: VARIANTS[k] for k in ("dsd", "control", "wild", "broken")}
    spec = write_spec(tmp_path, variants, seeds=[0, 1])
    train_here(home, spec, "seeds=[0]")
    home.write_manifest("tiny", manifest_of(load_sweep(spec)))  # seed 1 never started
    (dsd,) = load_sweep(spec, sets=["seeds=[0]"]).only(["variant=dsd"]).trials
    code = home.trial(dsd.id).status()["code"]
    home.trial(dsd.id).write_status(code="older", started=1.0)
    Store(home).sync(manifest_of(load_sweep(spec)))  # a second run of one trial
    home.trial(dsd.id).write_status(code=code, started=2.0)
    assert run("report", spec, "--home", home.root)[0] == OK
    page = (home.report_folder("tiny") / "report.md").read_text()
    for what in ("diverged", "failed", "pending"):
        assert what in page
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
