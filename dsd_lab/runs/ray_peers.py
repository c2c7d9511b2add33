"""Ranks of a distributed trial under Ray: actors in the trial's placement group, one per bundle.

The leading worker owns the actors, so they die with it. It notices a lost actor at the next message.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dsd_lab.core.messages import tell
from dsd_lab.core.peers import ALONE, Peers, joined
from dsd_lab.core.training.trainer import pick_device
from dsd_lab.errors import PeerLost
from dsd_lab.home.home import Home
from dsd_lab.runs.peers import END, follow, job_of, trial_of
from dsd_lab.specs.sweep import PlannedTrial

_EXIT_SECONDS = 30.0
"""Seconds that a rank has to exit after its last task."""


class Follower:
    """Actor that trains as a rank other than the leader."""

    def follow(self, job: dict[str, Any], rendezvous: str, rank: int) -> None:
        """Train, and draw samples, until the leader has nothing left to do."""
        from dsd_lab.runs.data_shelf import DataShelf

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
    group, job = get_current_placement_group(), job_of(home, trial)
    assert group is not None
    with tempfile.TemporaryDirectory(prefix="dsd-lab-") as folder:
        rendezvous = _rendezvous(folder)
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
            with joined(rendezvous, 0, size, resources.patience, pick_device(resources.gpus), lost) as peers:
                yield peers
                tell(peers, {"work": END})
            ray.wait(ends, num_returns=len(ends), timeout=_EXIT_SECONDS)
        except PeerLost as error:
            ray.wait(ends, num_returns=len(ends), timeout=1.0)
            raise PeerLost(_first_fault(ends) or str(error)) from error
        finally:
            for actor in actors:
                ray.kill(actor)


def _rendezvous(folder: str) -> str:
    """A file if all ranks are on this machine, which needs no open port; else a port of this machine."""
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        return f"file:{folder}/meeting"
    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((address, 0))
        return f"tcp:{address}:{free.getsockname()[1]}"


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
