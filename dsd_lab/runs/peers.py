"""Distributed trials: starts the processes of a trial, and runs those that are not the leader.

The leader (rank 0) runs the trial like a single process (`run_trial.py`), and tells the other ranks when to train and which
samples of an evaluation to draw. They read the leader's checkpoints, and write nothing to the home folder but those samples.

    python -m dsd_lab.runs.peers      one rank, started by a leader on the same machine; reads its job from stdin
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsd_lab.core.messages import heard, tell
from dsd_lab.core.peers import ALONE, Peers, joined
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import LabError, NoResources, PeerLost
from dsd_lab.evaluation.workspace import EvaluationCache
from dsd_lab.home.home import Home
from dsd_lab.home.plugins import keep_plugins
from dsd_lab.runs.child_environment import child_environment
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.plugins import load_kept
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial
from dsd_lab.training_code import training_code

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet

Team = Callable[[Home, PlannedTrial], AbstractContextManager[Peers]]
"""(home, trial) -> context with the leader's `Peers`; the other ranks run while it lasts."""
TRAIN, END = "train", "end"
"""Tasks that the leader announces, beside those of `EvaluationCache.take_part`."""
_EXIT_SECONDS = 30.0
"""Seconds that a rank has to exit after its last task."""


def job_of(home: Home, trial: PlannedTrial) -> dict[str, Any]:
    """What a rank needs to train and sample a trial, as JSON."""
    return {
        "home": str(home.root.resolve()),
        "trial": {
            "id": trial.id,
            "variant": trial.variant,
            "seed": trial.seed,
            "point": trial.point,
            "overrides": trial.overrides,
            "fields": trial.fields.model_dump(),
        },
        "plugins": keep_plugins(home),
    }


def trial_of(job: dict[str, Any]) -> PlannedTrial:
    """The trial of a job. Loads its plug-ins."""
    load_kept(job["plugins"])
    return PlannedTrial(**{**job["trial"], "fields": Trial.model_validate(job["trial"]["fields"])})


def follow(
    home: Home,
    trial: PlannedTrial,
    shelf: DataShelf,
    rendezvous: str,
    rank: int,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train a trial and draw samples of it as a rank other than the leader.

    Args:
        home: the leader's home folder.
        trial: the leader's trial.
        shelf: loaded datasets.
        rendezvous: address where the ranks meet (`core/peers.py`).
        rank: 1 or more.
        stop: called before every step and every block of samples; if it is true on any rank, all ranks stop.
    """
    resources, checkpoints = trial.fields.resources, home.trial(trial.id).checkpoints
    torch.set_num_threads(resources.threads)
    device = pick_device(resources.gpus)
    with joined(rendezvous, rank, resources.team, resources.patience, device) as peers:
        data, bench = shelf.get(trial, home), None  # while the leader reads its own
        while (asked := heard(peers))["work"] != END:
            if asked["work"] == TRAIN:
                trainer = trainer_among(peers, trial, data, device, checkpoints)
                trainer.resume()
                for _ in trainer.run(stop):
                    pass
                del trainer  # its memory is for the networks that are sampled
            else:
                bench = bench or EvaluationCache(trial.fields, checkpoints, data, device, home, peers=peers, stop=stop)
                bench.take_part(asked)


def trainer_among(peers: Peers, trial: PlannedTrial, data: DataSet, device: torch.device, checkpoints: Path) -> Trainer:
    """A trainer that shares its batches among ranks, after a check that all have the same images and code.

    Called by the leader, it has the other ranks train too (`follow`).

    Raises:
        BadInput: the images or the code differ.
    """
    if peers.leads:
        tell(peers, {"work": TRAIN})
    peers.agree(data.fingerprint, "images")
    peers.agree(training_code(), "training code")
    return Trainer(trial.fields, trial.seed, data, device, checkpoints, peers)


def dismiss(peers: Peers) -> None:
    """Let the other ranks end. One that is gone is no fault now, when all work is recorded."""
    with contextlib.suppress(PeerLost):
        tell(peers, {"work": END})


def _gpus_here(size: int) -> list[str]:
    """`CUDA_VISIBLE_DEVICES` of each rank.

    Raises:
        NoResources: this process may use fewer GPUs than there are ranks.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(rank) for rank in range(size)]
    if len(gpus) < size:
        raise NoResources(f"resources.gpus is {size}, but CUDA_VISIBLE_DEVICES names {len(gpus)}: {visible}")
    return gpus


@contextlib.contextmanager
def started_here(
    home: Home, trial: PlannedTrial, program: str = "dsd_lab.runs.peers", more: Mapping[str, Any] | None = None
) -> Iterator[Peers]:
    """Lead a trial whose other ranks are child processes on this machine, each with its own GPU if the trial uses GPUs.

    Args:
        home: where the trial is.
        trial: what is trained.
        program: module that the others run; its `serve` takes their job.
        more: of their job.

    Raises:
        PeerLost: a rank ended early.
    """
    resources = trial.fields.resources
    size, device = resources.team, pick_device(resources.gpus)
    if size == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder, contextlib.ExitStack() as children:
        rendezvous = f"file:{folder}/meeting"
        started = [
            children.enter_context(
                _child(
                    job_of(home, trial) | dict(more or {}) | {"rendezvous": rendezvous, "rank": rank}, folder, program
                )
            )
            for rank in range(1, size)
        ]

        def lost() -> str | None:
            return next((child.why() for child in started if child.process.poll() is not None), None)

        try:
            with joined(rendezvous, 0, size, resources.patience, device, lost) as peers:
                yield peers
                dismiss(peers)
        except PeerLost as error:
            for child in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(1.0)
            raise PeerLost(lost() or str(error)) from error


class _Child:
    """A rank as child process, and its error output."""

    def __init__(self, process: subprocess.Popen[bytes], rank: int, complaints: Path) -> None:
        self.process, self._rank, self._complaints = process, rank, complaints

    def why(self) -> str:
        lines = self._complaints.read_text(errors="replace").strip().splitlines()
        reason = f": {lines[-1][:300]}" if lines else ""
        return f"process {self._rank} of the trial ended with {self.process.poll()}{reason}"


@contextlib.contextmanager
def _child(job: dict[str, Any], folder: str, program: str) -> Iterator[_Child]:
    rank, environment = job["rank"], child_environment(os.environ)
    resources = job["trial"]["fields"]["resources"]
    if resources["gpus"] > 0:
        environment["CUDA_VISIBLE_DEVICES"] = _gpus_here(int(resources["gpus"]))[rank]
    complaints = Path(folder, f"{rank}.txt")
    with complaints.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the leader, which stops all ranks after the same step
        )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        yield _Child(process, rank, complaints)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_SECONDS)
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _end_with_leader() -> None:
    """Exit when the leader dies: it holds the other end of standard input."""
    while os.read(sys.stdin.fileno(), 4096):  # not through `sys.stdin`, whose lock a thread must not hold at the end
        pass
    os._exit(1)


def serve(shelf: Callable[[dict[str, Any]], DataShelf] = lambda job: DataShelf()) -> int:
    """Run one rank, whose job comes on standard input. Returns the exit code.

    Args:
        shelf: job -> source of its images.
    """
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_leader, daemon=True).start()
    try:
        follow(Home(Path(job["home"])), trial_of(job), shelf(job), job["rendezvous"], job["rank"])
    except LabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(serve())
