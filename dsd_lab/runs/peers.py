"""Distributed trials: starts the processes of a trial, and runs those that are not the leader.

The leader (rank 0) runs the trial like a single process (`run_trial.py`), and tells the other ranks when to train and which
samples of an evaluation to draw. The other ranks read the leader's checkpoints and write only those samples.

    python -m dsd_lab.runs.peers      one rank, started by a leader on the same machine; reads its job from standard input
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsd_lab.core.messages import heard, tell
from dsd_lab.core.peers import ALONE, Peers, joined
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, TRIALS_FAILED, BadInput, LabError, NoResources, PeerLost
from dsd_lab.evaluation.workspace import EvaluationCache
from dsd_lab.home.home import Home
from dsd_lab.home.plugins import keep_plugins
from dsd_lab.runs.child_environment import child_environment
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.plugins import load_kept
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.training_code import training_code

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet

Team = Callable[[Home, PlannedTrial], AbstractContextManager[Peers]]
"""(home, trial) -> context with the leader's `Peers`; the other ranks run while it lasts."""
TRAIN, END = "train", "end"
"""Tasks that the leader announces, in addition to those of `EvaluationCache.take_part`."""
EXIT_SECONDS, FAULT_SECONDS = 30.0, 10.0
"""Seconds that a rank has to exit after its last task, and to report its own fault after the leader has lost it."""
_ACTIONABLE: dict[int | None, type[LabError]] = {BAD_INPUT: BadInput, NO_RESOURCES: NoResources}
"""Exit code -> error that resuming the trial does not remove."""
_MAX_REASON = 1000
_MARK = "dsd-lab: "
"""Prefix of the line that reports a rank's fault, among others that libraries print."""


@dataclass(frozen=True)
class Ended:
    """A rank that ended before it was dismissed."""

    rank: int
    code: int | None
    """Exit code of its `LabError`; any other if it had none."""
    reason: str

    @property
    def fault(self) -> LabError:
        """The rank's own error where the user can fix it; otherwise `PeerLost`, after which the trial is resumed."""
        return _ACTIONABLE.get(self.code, PeerLost)(f"process {self.rank} of the trial: {self.reason}")


def first_fault(ended: Iterable[Ended]) -> LabError | None:
    """Why ranks ended: what the user can fix comes first, what follows from the end of another rank last."""
    order = {**dict.fromkeys(_ACTIONABLE, 0), TRIALS_FAILED: 2}
    first = min(ended, key=lambda e: order.get(e.code, 1), default=None)
    return None if first is None else first.fault


def job_of(home: Home, trial: PlannedTrial) -> dict[str, Any]:
    """What a rank needs to train and sample a trial, as JSON."""
    return {
        "home": str(home.root.resolve()),
        "trial": trial.as_json(),
        "plugins": keep_plugins(home),
    }


def trial_of(job: dict[str, Any]) -> PlannedTrial:
    """The trial of a job. Loads its plug-ins."""
    load_kept(job["plugins"])
    return PlannedTrial.from_json(job["trial"])


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
        data, bench = shelf.get(trial, home), None  # in parallel with the leader
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
    """Let the other ranks end. A rank that is already lost is ignored, since all results are recorded."""
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
def started_here(home: Home, trial: PlannedTrial, program: str = "dsd_lab.runs.peers") -> Iterator[Peers]:
    """Lead a trial whose other ranks are child processes on this machine, each with its own GPU if the trial uses GPUs.

    Args:
        home: home folder of the trial.
        trial: trial to train or sample.
        program: module that the other ranks run; it calls `serve`.

    Raises:
        PeerLost: a rank ended early.
        BadInput, NoResources: a rank ended by such an error.
    """
    resources = trial.fields.resources
    size, device = resources.team, pick_device(resources.gpus)
    if size == 1:
        yield ALONE
        return
    with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder, contextlib.ExitStack() as children:
        job = job_of(home, trial) | {"rendezvous": f"file:{folder}/meeting"}
        started = [children.enter_context(_child(job | {"rank": rank}, folder, program)) for rank in range(1, size)]

        def fault() -> LabError | None:
            return first_fault(child.ended() for child in started if child.process.poll() is not None)

        def lost() -> str | None:
            return None if (found := fault()) is None else str(found)

        try:
            with joined(job["rendezvous"], 0, size, resources.patience, device, lost) as peers:
                yield peers
                dismiss(peers)
        except PeerLost as error:
            until = time.monotonic() + FAULT_SECONDS
            for child in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, until - time.monotonic()))
            raise (fault() or error) from error


class _Child:
    """A rank as child process, and its error output."""

    def __init__(self, process: subprocess.Popen[bytes], rank: int, errors: Path) -> None:
        self.process, self._rank, self._errors = process, rank, errors

    def ended(self) -> Ended:
        """How the process ended."""
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        own = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
        code = self.process.poll()
        if own and code in (*_ACTIONABLE, TRIALS_FAILED):
            return Ended(self._rank, code, own[-1][:_MAX_REASON])
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return Ended(self._rank, None, how + (f": {lines[-1][:_MAX_REASON]}" if lines else ""))


@contextlib.contextmanager
def _child(job: dict[str, Any], folder: str, program: str) -> Iterator[_Child]:
    rank, environment = job["rank"], child_environment(os.environ)
    resources = job["trial"]["fields"]["resources"]
    if resources["gpus"] > 0:
        environment["CUDA_VISIBLE_DEVICES"] = _gpus_here(int(resources["gpus"]))[rank]
    errors = Path(folder, f"{rank}.txt")
    with errors.open("wb") as file:
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
        yield _Child(process, rank, errors)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
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


def serve(shelf: DataShelf) -> int:
    """Run one rank, whose job comes on standard input. Returns the exit code.

    Args:
        shelf: source of its images.
    """
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_leader, daemon=True).start()
    try:
        follow(Home(Path(job["home"])), trial_of(job), shelf, job["rendezvous"], job["rank"])
    except LabError as error:
        print(f"{_MARK}{error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(serve(DataShelf()))
