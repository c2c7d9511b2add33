"""A trial that several processes train is the trial that one trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest
import torch
from several import train
from sweeping import DEADLINE, in_child, run, start, wait_until, write_spec
from test_pretended_gpu import MORE, covering, trial_of

from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, TRIALS_FAILED, BadInput, NoResources, PeerLost
from dsd_lab.home.home import Home
from dsd_lab.runs import ray_callbacks, ray_engine, ray_peers
from dsd_lab.runs.peers import Ended, first_fault
from dsd_lab.specs.trial import Trial

pytestmark = pytest.mark.integration

STEPS = 4
BIG = {"training": {"batch_size": 10}}
WHOLE = {
    "batchnorm": {
        "latent": {"normaliser": "batchnorm", "entropy_weight": 0.1},
        "objective": {"output": "clean", "loss_space": "clean", "balance": "gradient_norm"},
        "auxiliary": {"classification": 0.1},
        "training": {"noise_draws": 2},
    },
    "augmented": {"augmentation": {"flip": 0.5, "crop": 1, "mask": 0.25}, "auxiliary": {"representation": 0.1}},
}
"""What is taken over a whole batch, several at once."""


def shared(fields):
    """The trial in batches that no number of processes from 2 to 4 divides evenly, a record a step."""
    values = fields.model_dump()
    parts = values["training"]["grad_accum_steps"]
    values["training"] |= {"steps": STEPS, "batch_size": 11 * parts, "precision": "fp32", "compile": False}
    values["optimiser"] |= {"warmup_steps": 0}
    values["probe"] |= {"every": 2, "images": 16, "scale_images": 8}
    values["observation"] |= {"log_every": 1, "images": 1, "images_every": 2, "checkpoint_every": 2}
    return Trial.model_validate(values)


@pytest.fixture(scope="module")
def trials():
    names = [*covering(), *(name for name in MORE if name not in ("perceptual", "vision"))]
    made = {name: shared(trial_of(name)) for name in names}
    return made | {name: shared(Trial.model_validate(fields)) for name, fields in WHOLE.items()}


@pytest.fixture(scope="module")
def alone(trials):
    return train(trials, 1)


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_records_equal_those_of_one_process_whatever_the_variant(trials, alone, processes):
    found = train(trials, processes)
    for name in trials:
        (records, weights), (expected, expected_weights) = found[name], alone[name]
        assert len(records) == STEPS
        for step, (mine, theirs) in enumerate(zip(records, expected, strict=True)):
            assert mine.keys() == theirs.keys(), (name, step)
            for key, value in theirs.items():
                if not key.startswith("train/clipped"):  # a norm at the limit may fall on either side of it
                    assert mine[key] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, step, key)
        # A weight whose gradient is 0 but for rounding (a bias before batchnorm) goes wherever AdamW takes it.
        mine, theirs = (torch.cat([w.flatten() for w in part.values()]) for part in (weights, expected_weights))
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-3, name


def test_the_same_number_of_processes_gives_the_same_bits_and_a_resume_too(tmp_path):
    trials = {"whole": shared(Trial.model_validate(WHOLE["batchnorm"]))}
    ((records, weights),) = train(trials, 3).values()
    ((again, _),) = train(trials, 3).values()
    assert again == records
    train(trials, 3, tmp_path, until=2)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000002"]
    ((rest, resumed),) = train(trials, 3, tmp_path).values()
    assert rest == records[2:]
    assert all(torch.equal(resumed[key], weights[key]) for key in weights)


def test_another_number_of_processes_goes_on(tmp_path):
    trials = {"whole": shared(Trial.model_validate(WHOLE["augmented"]))}
    ((records, _),) = train(trials, 1).values()
    train(trials, 2, tmp_path, until=2)
    ((rest, _),) = train(trials, 3, tmp_path).values()
    assert [r["train/loss"] for r in rest] == pytest.approx([r["train/loss"] for r in records[2:]], rel=1e-4)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus": 2.5}, "neither a fraction of one GPU nor a whole number"),
        ({"gpus": 2, "processes": 3}, "each process has one GPU"),
        ({"processes": 100}, "100 processes share 64 images"),
    ],
)
def test_what_cannot_be_shared_is_refused(resources, message):
    with pytest.raises(ValueError, match=message):
        Trial.model_validate({"resources": resources, "training": {"batch_size": 64}})


def test_whole_gpus_are_processes():
    assert [
        Trial.model_validate({"resources": r}).resources.team
        for r in ({}, {"gpus": 0.5}, {"gpus": 8}, {"processes": 3})
    ] == [1, 1, 8, 3]


def test_room_for_processes_is_counted_over_machines():
    def asks(processes, machines):
        trial = mock.Mock(fields=Trial.model_validate({"resources": {"processes": processes, "cpus": 2}}))
        trial.name = "dsd s0"
        nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in machines]
        with mock.patch.object(ray_engine.ray, "nodes", return_value=nodes):
            ray_engine._check_resources([trial])

    asks(3, [5, 2])
    with pytest.raises(NoResources, match="needs 4 processes with 2 CPUs each, but the cluster has room for 3"):
        asks(4, [5, 2])


TRIAL = {
    "data": {"source": "digits"},
    "network": {"size": "nano8"},
    "training": {"steps": 40, "batch_size": 33},
    "observation": {"checkpoint_every": 10, "log_every": 10},
    "probe": {"every": 40, "images": 16, "gradient_images": 0, "scale_images": 0},
    "resources": {"processes": 2},
}
DSD = {"dsd": {"why": "The whole method.", "objective": {"target": "ema", "output": "clean", "loss_space": "clean"}}}


def weights_in(home):
    (folder,) = (Home(home).root / "trials").iterdir()
    return (folder / "checkpoints" / "step-000000040" / "tensors.safetensors").read_bytes()


def measured_in(home):
    (path,) = home.glob("trials/*/evaluations/*.json")
    return json.loads(path.read_text())["metrics"]


@pytest.mark.slow
def test_train_sweep_and_torchrun_give_the_same_bits(tmp_path):
    evaluate = [{"sampler": "euler", "steps": 1, "images": 600, "metrics": ["fid"]}]
    spec = write_spec(tmp_path, DSD, base=TRIAL, seeds=[0], evaluate=evaluate)
    run("train", spec, "--variant", "dsd", "--home", tmp_path / "train", "--no-tracking")
    run("sweep", spec, "--home", tmp_path / "sweep", "--no-tracking")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dsd_lab", "train", spec]
    command += ["--variant", "dsd", "--home", tmp_path / "torchrun", "--no-tracking"]
    subprocess.run(command, check=True)
    homes = [tmp_path / name for name in ("train", "sweep", "torchrun")]
    assert weights_in(homes[0]) == weights_in(homes[1]) == weights_in(homes[2])
    made = [measured_in(home) for home in homes]
    assert made[0] == made[1] == made[2] and any(name.startswith("fid/indomain-n600") for name in made[0])
    next(homes[2].glob("trials/*/evaluations/*.json")).unlink()
    subprocess.run(command, check=True)  # of a finished trial, its evaluations alone
    assert measured_in(homes[2]) == made[0]
    (status,) = (tmp_path / "sweep" / "trials").glob("*/status.json")
    assert json.loads(status.read_text())["trained_on"][0]["device"].startswith("2 x ")


MARK = "DSD_LAB_TESTED_IN"


def followers(folder):
    """Processes that train beside a leader, started with this folder in their environment: ids. Other tests have others."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            called = " ".join(process.cmdline())
            if ("dsd_lab.runs.peers" in called or "ray::Follower" in called) and process.environ().get(MARK) == str(
                folder
            ):
                found.append(process.pid)
    return found


REFUSES = """
import torch.distributed as dist
from dsd_lab.errors import {error}
from dsd_lab.parts import DATA_SOURCES
from dsd_lab.core.data import load_data
from dsd_lab.specs.trial import Data

@DATA_SOURCES.add("own")
def own(spec, cache):
    if dist.is_initialized() and dist.get_rank() == 1:
        raise {error}("no images on this machine")
    return load_data(Data())
"""
"""Images that a leader has and the other process has not."""


@pytest.mark.parametrize(
    ("verb", "error", "cause"),
    [
        ("train", "BadInput", "input"),
        pytest.param("train", "NoResources", None, marks=pytest.mark.slow),
        pytest.param("sweep", "BadInput", "input", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_another_process_that_the_user_can_fix_ends_the_trial_at_once(tmp_path, verb, error, cause):
    plugin = tmp_path / "own_images.py"
    plugin.write_text(REFUSES.format(error=error))
    spec = write_spec(tmp_path, DSD, base=TRIAL | {"data": {"source": "own", "name": "own"}}, seeds=[0])
    home, chosen = Home(tmp_path / "home"), ["--variant", "dsd"] if verb == "train" else []
    process = start(verb, spec, *chosen, "--home", home.root, "--no-tracking", "--plugin", plugin)
    output, _ = process.communicate(timeout=DEADLINE)
    (folder,) = (home.trial(path.name) for path in home.root.glob("trials/*"))
    status = folder.status()
    assert (process.returncode, status.state, status.attempt) == (TRIALS_FAILED, "failed", 1), output
    assert status.error == "process 1 of the trial: no images on this machine" and status.cause == cause


def test_the_first_fault_is_the_one_to_fix_and_what_follows_from_it_comes_last():
    followed, killed = Ended(1, TRIALS_FAILED, "another process was lost"), Ended(2, None, "was killed by signal 9")
    own = Ended(3, BAD_INPUT, "no images")
    assert first_fault([]) is None
    for ended, kind, text in (
        ([followed], PeerLost, "process 1 of the trial: another process was lost"),
        ([followed, killed], PeerLost, "process 2 of the trial: was killed by signal 9"),
        ([followed, killed, own], BadInput, "process 3 of the trial: no images"),
        ([Ended(1, NO_RESOURCES, "no GPU")], NoResources, "process 1 of the trial: no GPU"),
    ):
        found = first_fault(ended)
        assert type(found) is kind and str(found) == text


def test_a_worker_that_ends_for_a_lost_process_records_why_and_the_sweep_repeats_it(tmp_path, monkeypatch):
    for name in ("_LOOK_EVERY", "_NOTICED_WITHIN"):
        monkeypatch.setattr(ray_peers, name, 0.01)
    home, began = Home(tmp_path), time.time()
    folder = home.trial("0" * 12)

    def led(fault):
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.write_status(state="running", error=None)
        with folder.lock(), ray_peers._ended_where_cut_off(folder, lambda: fault):
            time.sleep(3 if isinstance(fault, BadInput) else DEADLINE)

    assert in_child(lambda: led(BadInput("no images"))) == 0, "its connections show it"
    assert folder._status().error is None
    assert in_child(lambda: led(PeerLost("process 1 of the trial: cut off"))) == 1
    assert (folder.state(), folder.status().error) == ("interrupted", "process 1 of the trial: cut off")
    ray_callbacks._record_lost_worker(home, folder.id, None, began)
    assert folder.status().error == "the worker died 3 times; last: process 1 of the trial: cut off"
    ray_callbacks._record_lost_worker(home, folder.id, None, time.time() + 1)  # of a later sweep
    assert folder.status().error == "the worker died 3 times; last: reason unknown"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(tmp_path, verb, monkeypatch):
    monkeypatch.setenv(MARK, str(tmp_path))
    base = TRIAL | {"training": {"steps": 40, "batch_size": 512}}
    spec = write_spec(tmp_path, DSD, base=base, seeds=[0])
    chosen = ["--variant", "dsd"] if verb == "train" else []
    home = Home(tmp_path / "home")
    driver = start(verb, spec, *chosen, "--home", home.root, "--no-tracking")
    wait_until(lambda: any(home.root.glob("trials/*/checkpoints/step-*")), "a checkpoint is there")
    beside = followers(tmp_path)
    assert beside
    for process in beside:
        os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    code = driver.wait(200)
    if verb == "train":
        assert code == 3
        assert time.monotonic() - began < 60
        assert '"state": "interrupted"' in next(home.root.glob("trials/*/status.json")).read_text()
        assert (
            "process 1 of the trial: was killed by signal 9" in next(home.root.glob("trials/*/status.json")).read_text()
        )
        run(verb, spec, *chosen, "--home", home.root, "--no-tracking")
    else:
        assert code == 0
        assert json.loads(next(home.root.glob("trials/*/status.json")).read_text())["attempt"] == 2
    assert not followers(tmp_path)
    run("train", spec, "--variant", "dsd", "--home", tmp_path / "whole", "--no-tracking")
    assert weights_in(home.root) == weights_in(tmp_path / "whole")
