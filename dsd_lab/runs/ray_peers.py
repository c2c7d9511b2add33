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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dsd_lab.core.peers import ALONE, Peers, joined
from dsd_lab.core.training.trainer import pick_device
from dsd_lab.errors import BadInput, LabError, PeerLost
from dsd_lab.home.home import Home
from dsd_lab.home.ownership import unseen
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.runs.peers import EXIT_SECONDS, FAULT_SECONDS, Ended, dismiss, first_fault, follow, job_of, trial_of
from dsd_lab.specs.sweep import PlannedTrial

_LOOK_EVERY, _NOTICED_WITHIN = 2.0, 10.0
"""Seconds between checks of the other processes, and seconds in which the connections usually show that one is lost."""


class Follower:
    """Actor that trains as a rank other than the leader."""

    def follow(self, job: dict[str, Any], rendezvous: str, rank: int) -> tuple[int, str] | None:
        """Train and draw samples until the leader dismisses this rank.

        Returns:
            Exit code and text of a `LabError`, not all of which survive pickling; None if there was none.
        """
        from dsd_lab.runs.data_shelf import DataShelf

        try:
            if (reason := unseen(Home(Path(job["home"])), job["home_id"])) is not None:
                raise BadInput(reason)  # as for the leader: when it is fixed, the same command runs the trial
            follow(Home(Path(job["home"])), trial_of(job), DataShelf(), rendezvous, rank)
        except LabError as error:
            return error.exit_code, str(error)
        return None


@contextlib.contextmanager
def in_placement_group(home: Home, trial: PlannedTrial) -> Iterator[Peers]:
    """Lead a trial in the first bundle and start the other ranks in the next ones.

    Raises:
        PeerLost: a rank ended early.
        BadInput, NoResources: a rank ended by such an error.
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

        def fault() -> LabError | None:
            return first_fault(_ended(ends))

        def lost() -> str | None:
            return None if (found := fault()) is None else str(found)

        try:
            device = pick_device(resources.gpus)
            with (
                _ended_where_cut_off(home.trial(trial.id), fault),
                joined(rendezvous, 0, size, resources.patience, device, lost, listening) as peers,
            ):
                yield peers
                dismiss(peers)
            ray.wait(ends, num_returns=len(ends), timeout=EXIT_SECONDS)
        except PeerLost as error:
            ray.wait(ends, num_returns=len(ends), timeout=FAULT_SECONDS)
            raise (fault() or error) from error
        finally:
            for actor in actors:
                ray.kill(actor)


@contextlib.contextmanager
def _meeting_place(folder: str) -> Iterator[tuple[str, socket.socket | None]]:
    """Rendezvous: a file if the cluster is one machine, so that no port is opened; otherwise a bound port of this machine."""
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        yield f"file:{folder}/meeting", None
        return
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((address, 0))
        yield f"tcp:{address}:{listening.getsockname()[1]}", listening


@contextlib.contextmanager
def _ended_where_cut_off(folder: TrialFolder, fault: Callable[[], LabError | None]) -> Iterator[None]:
    """While the block lasts, end this process if another one is lost and its connections do not show it.

    A process that dies closes its connections. A machine that is cut off does not, and this process would wait for its
    messages for `resources.patience`; Ray notices within half a minute. Tune then restarts the trial, as after the death of
    any worker. A process that ended by an error of its own has closed its connections, so this one is left to notice it.

    Args:
        folder: of the trial; its status records why the process ended.
        fault: returns the fault of the other processes, or None.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            if (
                isinstance(fault(), PeerLost)
                and not over.wait(_NOTICED_WITHIN)
                and isinstance(why := fault(), PeerLost)
            ):
                print(f"dsd-lab: {why}", file=sys.stderr, flush=True)
                with contextlib.suppress(Exception):  # also on a full disk the process must end
                    if folder.state() not in ENDED:
                        folder.write_status(state="interrupted", error=str(why), updated=time.time())
                os._exit(1)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _ended(ends: list[Any]) -> Iterator[Ended]:
    """The ranks that have ended by a fault."""
    done, _ = ray.wait(ends, num_returns=len(ends), timeout=0)
    for end in done:
        rank = ends.index(end) + 1
        try:
            found = ray.get(end)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            yield Ended(rank, None, (str(cause).splitlines() or [""])[0][:300])
        else:
            if found is not None:
                yield Ended(rank, *found)
