"""Faults of data, caches and evaluations, of trials that hang, and of very many trials: as in test_faults.py."""

import contextlib
import ctypes
import gc
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from sweeping import (
    EVALUATION,
    VARIANTS,
    die,
    finish,
    in_child,
    run,
    train_here,
    write_idx,
    write_spec,
)

from dsd_lab.core.data import DataSet, Images, load_data
from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.errors import OK
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.names import extractor_path
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data
from dsd_lab.store.mlflow_store import Store

CPU = torch.device("cpu")


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
    assert "train-images-idx3-ubyte" in home.trial(trial.id).status().error
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


@pytest.mark.integration
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
        monkeypatch.setattr("dsd_lab.runs.trial_evaluations.encoded", lambda *_: die())
        finish(home, whole.trial, evaluations)

    before = folder.spool.read_bytes()
    assert in_child(work) == -signal.SIGKILL
    assert folder.state() == "done" and folder.evaluations() == {}
    assert finish(home, whole.trial, evaluations)[-1] == "done"
    assert len(folder.evaluations()) == 1 and folder.spool.read_bytes() == before


# -- Hanging, and many of them -------------------------------------------------------------------------


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
    home.write_manifest(manifest_of(load_sweep(spec)))  # seed 1 never started
    (dsd,) = load_sweep(spec, sets=["seeds=[0]"]).only(["variant=dsd"]).trials
    code = home.trial(dsd.id).status().code
    home.trial(dsd.id).write_status(code="older", started=1e9)
    Store(home).sync(manifest_of(load_sweep(spec)))  # a second run of one trial
    home.trial(dsd.id).write_status(code=code, started=2e9)
    assert run("report", spec, "--home", home.root)[0] == OK
    page = (home.report_folder("tiny") / "report.md").read_text()
    for what in ("diverged", "failed", "pending"):
        assert what in page
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)
