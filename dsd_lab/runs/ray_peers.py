"""Ranks of a distributed trial under Ray: actors in the trial's placement group, one per bundle.

The leading worker owns the actors, so they die with it. It notices a lost actor at the next message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dsd_lab.core.peers import ALONE, Peers, joined
from dsd_lab.core.training.trainer import pick_device
from dsd_lab.errors import NoResources, PeerLost
from dsd_lab.home.home import Home
from dsd_lab.home.mark import unseen
from dsd_lab.runs.peers import dismiss, follow, job_of, trial_of
from dsd_lab.specs.sweep import PlannedTrial

_EXIT_SECONDS = 30.0
"""Seconds that a rank has to exit after its last task."""
_LOOK_EVERY, _NOTICED_WITHIN = 2.0, 10.0
"""Seconds between looks at the other processes, and in which a lost one is usually known by its connections."""


class Follower:
    """Actor that trains as a rank other than the leader."""

    def follow(self, job: dict[str, Any], rendezvous: str, rank: int) -> None:
        """Train, and draw samples, until the leader has nothing left to do.

        Raises:
            NoResources: this machine does not see the home folder.
        """
        from dsd_lab.runs.data_shelf import DataShelf

        if (reason := unseen(Path(job["home"]), job["home_id"])) is not None:
            raise NoResources(reason)

        follow(Home(Path(job["home"])), trial_of(job), DataShelf(), rendezvous, rank)


@contextlib.contextmanager
def in_placement_group(home: Home, trial: PlannedTrial) -> Iterator[Peers]:
    """Lead a trial in the first bundle and start the other ranks in the next ones.

    Raises:
        PeerLost: a rank ended early.
    """
    resources = trial.fields.resources
    size = resources.team
    if size == 1:
        yield ALONE
        return
    group, job = get_current_placement_group(), job_of(home, trial) | {"home_id": home.id}
    assert group is not None
    with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder, _meeting_place(folder) as (rendezvous, listening):
        follower: Any = ray.remote(Follower)
        actors = [
            follower.options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus_of_process,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote()
            for rank in range(1, size)
        ]
        ends = [actor.follow.remote(job, rendezvous, rank) for rank, actor in enumerate(actors, 1)]

        def lost() -> str | None:
            return _first_fault(ends)

        try:
            device = pick_device(resources.gpus)
            with (
                _ended_where_cut_off(lost),
                joined(rendezvous, 0, size, resources.patience, device, lost, listening) as peers,
            ):
                yield peers
                dismiss(peers)
            ray.wait(ends, num_returns=len(ends), timeout=_EXIT_SECONDS)
        except PeerLost as error:
            ray.wait(ends, num_returns=len(ends), timeout=1.0)
            raise PeerLost(_first_fault(ends) or str(error)) from error
        finally:
            for actor in actors:
                ray.kill(actor)


@contextlib.contextmanager
def _meeting_place(folder: str) -> Iterator[tuple[str, socket.socket | None]]:
    """A file if all processes run on this machine, so that no port is opened; otherwise a bound port of this machine."""
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        yield f"file:{folder}/meeting", None
        return
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((address, 0))
        yield f"tcp:{address}:{listening.getsockname()[1]}", listening


@contextlib.contextmanager
def _ended_where_cut_off(lost: Callable[[], str | None]) -> Iterator[None]:
    """While the block lasts, end this process where another of the trial is gone and that is not noticed by itself.

    A process that dies closes its connections. A machine that is cut off does not, and its messages would be waited for
    as long as `resources.patience`; Ray notices within half a minute. The trial is then taken up again, as that of any
    worker that has died.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            if (why := lost()) is not None and not over.wait(_NOTICED_WITHIN):
                print(f"dsd-lab: {why}", file=sys.stderr, flush=True)
                os._exit(1)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _first_fault(ends: list[Any]) -> str | None:
    """Why the first ended rank ended; None while all run."""
    ended, _ = ray.wait(ends, num_returns=len(ends), timeout=0)
    for end in ended:
        try:
            ray.get(end)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            return f"process {ends.index(end) + 1} of the trial: {(str(cause).splitlines() or [''])[0][:300]}"
    return None
