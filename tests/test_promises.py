"""What is promised, each promise shown once on the real thing: Ray, MLflow and its server, processes, the file system."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from comparing import stored_trials
from sweeping import (
    DEADLINE,
    FOREIGN,
    VARIANTS,
    command,
    events,
    faulty_server,
    foreign_checkpoint,
    free_port,
    in_child,
    mlflow_server,
    outcome,
    run,
    running,
    spooled_steps,
    start,
    stored_steps,
    wait_until,
    write_spec,
)

from dsd_lab.cli.main import main
from dsd_lab.core.randomness import batch_indices
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT, INTERRUPTED, NO_RESOURCES, OK, TERMINATED, TRIALS_FAILED, UNEXPECTED
from dsd_lab.home.home import Home
from dsd_lab.home.spool import read_spool
from dsd_lab.home.trial_records import Status
from dsd_lab.specs.identity import SCHEMA_VERSION
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.replay import stored_metrics


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def attempt(home: Home, trial: str, number: int) -> Status | None:
    """The status of a trial in that attempt."""
    status = home.trial(trial).status()
    return status if status.attempt == number else None


@pytest.mark.slow
def test_p1_a_trial_is_its_hash_is_never_run_twice_and_never_overwritten(tmp_path):
    home, variants = Home(tmp_path / "home"), {"dsd": {}, "control": VARIANTS["control"]}
    first = write_spec(tmp_path / "first", {"dsd": {}}, name="first")
    other = write_spec(tmp_path / "other", {"same": {}, **variants}, name="other")
    (trial,) = load_sweep(first).trials
    changed = {"network.width": 16, "network.heads": 2, "network.encode_blocks": 1, "network.denoise_blocks": 1}
    changed |= {"network.decode_blocks": 1, "training.steps": 12, "training.batch_size": 8}
    text = json.dumps({"schema": SCHEMA_VERSION, "seed": 0, "fields": changed}, sort_keys=True, separators=(",", ":"))
    assert trial.id == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert run("sweep", first, "--home", home.root)[0] == OK
    before = files_of(home.trial(trial.id).root)
    for spec in (first, other, other):
        assert run("sweep", spec, "--home", home.root)[0] == OK
    assert files_of(home.trial(trial.id).root) == before
    ids = {t.id for t in load_sweep(other).trials}
    assert trial.id in ids and len(ids) == 2
    assert [home.trial(i).status().attempt for i in ids] == [1, 1]
    assert stored_steps(home) == spooled_steps(home, sorted(ids))


def died_at(home: Home, trial: str, worker: int) -> int:
    """The step of the last record of a process that trained, once it is dead."""
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker has died")
    return int(events(home, trial)[-1]["step"])


@pytest.mark.slow
def test_p2_killed_workers_and_drivers_cost_at_most_checkpoint_every_and_no_metric_and_no_bit(undisturbed, tmp_path):
    home, ids, served = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials], tmp_path / "served"
    every = undisturbed.plan.trials[0].fields.observation.checkpoint_every
    with mlflow_server(served, free_port()) as uri:
        arguments = ("sweep", undisturbed.spec, "--home", home.root, "--tracking-uri", uri)
        sweep = start(*arguments)
        worker = wait_until(lambda: running(home, ids[0], 40), "the trial is under way", sweep)
        os.kill(worker, signal.SIGKILL)
        reached = died_at(home, ids[0], worker)
        assert wait_until(lambda: attempt(home, ids[0], 2), "it is taken up again", sweep).step >= reached - every
        worker = wait_until(lambda: running(home, ids[0], 80), "it goes on", sweep)
        sweep.kill()
        sweep.communicate(timeout=DEADLINE)
        reached = died_at(home, ids[0], worker)
        sweep = start(*arguments)
        assert wait_until(lambda: attempt(home, ids[0], 3), "it is taken up again", sweep).step >= reached - every
        output, _ = sweep.communicate(timeout=DEADLINE)
        assert sweep.returncode == OK, output
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    spooled = {
        i: [
            (name, line.step, value, 0)
            for line in read_spool(home.trial(i).spool)
            for name, value in stored_metrics(line).items()
            if not name.startswith("machine/")  # another attempt at the same steps has another speed
        ]
        for i in ids
    }
    stored = {i: [run["metrics"] for run in runs] for i, runs in stored_trials(served).items()}
    assert stored == {i: [sorted(rows)] for i, rows in spooled.items()}
    numbers = [line["n"] for line in events(home, ids[0])]
    assert numbers == list(range(len(numbers)))


def test_p3_a_checkpoint_is_complete_or_invisible(tmp_path, monkeypatch):
    """Everything is flushed under a name that no reader takes, and renamed last; a process killed between any two steps leaves the older one."""
    tensors = {"a": torch.arange(1000.0)}
    save_checkpoint(tmp_path, 5, tensors, {"at": 5}, keep=2)
    steps: list[str] = []
    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "rename")):
            real = getattr(module, name)
            patch.setattr(module, name, lambda *a, real=real, name=name: (steps.append(name), real(*a))[1])
        patch.setattr(Path, "rename", lambda self, to: (steps.append("rename"), os.replace(self, to))[1])
        save_checkpoint(tmp_path, 10, tensors, {"at": 10}, keep=2)
    # tensors, manifest, folder; the name; the folder above
    assert steps == ["fsync", "fsync", "fsync", "rename", "fsync"]

    for at in range(len(steps)):

        def killed(at=at):
            done = []

            def or_die(real):
                def call(*arguments):
                    if len(done) == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    done.append(real)
                    return real(*arguments)

                return call

            monkeypatch.setattr(os, "fsync", or_die(os.fsync))
            monkeypatch.setattr(Path, "rename", or_die(Path.rename))
            save_checkpoint(tmp_path, 15, tensors, {"at": 15}, keep=2)

        assert in_child(killed) == -signal.SIGKILL
        whole = {path.name: load_checkpoint(path)[1]["at"] for path in list_checkpoints(tmp_path)}
        last = {"step-000000015": 15} if at == 4 else {}  # the name is there; only the folder was not flushed yet
        assert whole == {"step-000000005": 5, "step-000000010": 10, **last}
    newest = list_checkpoints(tmp_path)[0]
    (newest / "tensors.safetensors").write_bytes(b"")
    assert newest_checkpoint(tmp_path)[2] == {"at": 10}
    assert (tmp_path / f"damaged-{newest.name}").is_dir()


@pytest.mark.slow
def test_p4_a_server_that_never_answers_neither_stops_nor_falsifies_training_and_replay_is_idempotent(
    undisturbed, tmp_path
):
    home, ids = Home(tmp_path / "home"), [t.id for t in undisturbed.plan.trials]
    with faulty_server(None) as uri:
        assert run("sweep", undisturbed.spec, "--home", home.root, "--tracking-uri", uri)[0] == OK
    assert {i: outcome(home, i) for i in ids} == undisturbed.outcomes
    manifest = home.manifests()[undisturbed.plan.key]
    with mlflow_server(tmp_path / "served", free_port()) as uri:
        for _ in range(2):
            Store(home, uri).sync(manifest)
    assert stored_steps(Home(tmp_path / "served")) == spooled_steps(home, ids)


@pytest.mark.slow
def test_p5_a_loss_that_is_not_finite_is_a_result_with_all_that_is_needed_to_look_at_it(tmp_path, digits):
    spec, home = write_spec(tmp_path, {k: VARIANTS[k] for k in ("wild", "dsd", "control")}), Home(tmp_path / "home")
    code, answer = run("sweep", spec, "--home", home.root)
    assert code == OK and answer["states"] == {"diverged": 1, "done": 2}
    wild = next(t for t in load_sweep(spec).trials if t.variant == "wild")
    folder = home.trial(wild.id)
    (crash,) = list_checkpoints(folder.root / "crash")
    tensors, state = load_checkpoint(crash)
    step = folder.status().step
    assert all(bool(torch.isfinite(v).all()) for k, v in tensors.items() if k.startswith("network."))
    assert state["batch"] == batch_indices(0, step, 8, len(digits.train)).tolist() and state["seed"] == 0
    trainer = Trainer(wild.fields, 0, digits, torch.device("cpu"), folder.root / "crash")
    assert trainer.resume() and trainer.step == step
    diverged = trainer.train_step()
    assert diverged is not None and diverged.reason == state["reason"] == folder.status().error
    code, _ = run("report", spec, "--home", home.root)
    assert code == OK and "diverged" in (home.report_folder("tiny") / "report.md").read_text()


def test_p6_bad_input_is_refused_before_anything_is_imported_or_written(tmp_path):
    spec = write_spec(tmp_path, base={"training": {"stpes": 5}})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command("sweep", spec, "--home", tmp_path / "home"), capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == BAD_INPUT and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line == f"dsd-lab: {spec}:13: unknown key 'training.stpes'; did you mean 'training.steps'?"
    spent = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    assert spent < 2  # seconds of processor: a machine that is busy with trials takes longer by the clock
    assert not (tmp_path / "home").exists()


def test_p7_exit_codes_say_what_happened(tmp_path, capsys):
    spec, home = (
        write_spec(tmp_path, {k: VARIANTS[k] for k in ("dsd", "wild")} | {"broken": FOREIGN}),
        Home(tmp_path / "home"),
    )
    foreign_checkpoint(home, load_sweep(spec).only(["variant=broken"]).trials[0])

    def train(variant, *more):
        return main(["train", str(spec), "--variant", variant, "--home", str(home.root), "--no-tracking", *more])

    def interrupted_by(number, seed):
        (trial,) = load_sweep(spec, sets=[f"seeds=[{seed}]", "training.steps=100000"]).only(["variant=dsd"]).trials

        def send():
            wait_until(lambda: running(home, trial.id, 3), "the trial is under way")
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        code = train("dsd", "--set", f"seeds=[{seed}]", "--set", "training.steps=100000")
        sender.join()
        assert home.trial(trial.id).state() == "interrupted"
        return code

    assert train("dsd") == OK
    assert train("wild") == OK  # a divergence is a result
    assert train("broken") == TRIALS_FAILED
    assert train("nobody") == BAD_INPUT
    assert interrupted_by(signal.SIGINT, 1) == INTERRUPTED
    assert interrupted_by(signal.SIGTERM, 2) == TERMINATED
    huge = [f"--set={key}" for key in ("network.width=2048", "network.heads=8", "training.steps=1000000")]
    huge += ["--set=observation.checkpoints_kept=1000", "--only=variant=dsd", "--no-tracking"]
    assert main(["sweep", str(spec), "--home", str(tmp_path / "other"), *huge]) == NO_RESOURCES
    nobody = f"http://127.0.0.1:{free_port()}"
    assert main(["report", "--home", str(home.root), "--tracking-uri", nobody]) == UNEXPECTED
    assert "Traceback" not in capsys.readouterr().err


# -- Every promise and every fault has its test --------------------------------------------------------


def test_every_promise_and_every_fault_is_found_by_its_number():
    import re

    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = re.findall(r"def test_((?:(?:p|f)\d+_(?:and_)?)+)", text)
    found = {number for name in names for number in re.findall(r"[pf]\d+", name)}
    assert found == {f"p{i}" for i in range(1, 8)} | {f"f{i}" for i in range(1, 25)}
