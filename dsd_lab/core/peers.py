"""The processes that train one trial together: each takes its share of every batch, all of them take the same step.

Every process draws the random numbers of the whole batch and keeps the rows of its own images, so that N processes
train the trial that one trains: losses are means over images, so that gradients are sums over processes of their
shares, and what is not a mean over images (`Peers.whole`) is computed from the latents of all. Sums over processes
add in another order than one process does, and the last bits differ with N; they are the same for the same N.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsd_lab.errors import BadInput, PeerLost


@dataclass(frozen=True)
class Peers:
    """This process among those of its trial.

    Args:
        rank: 0 or more; process 0 leads: it alone probes, draws, saves and evaluates.
        size: number of processes.
        images: of a whole batch (of a part of it, where gradients are accumulated).
    """

    rank: int = 0
    size: int = 1
    images: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def of_batches(self, images: int) -> Peers:
        """The same process, in batches of so many images."""
        return replace(self, images=images)

    @property
    def rows(self) -> slice:
        """The images of a batch that are this process's; shares differ by one image at most."""
        return slice(self.rank * self.images // self.size, (self.rank + 1) * self.images // self.size)

    @property
    def share(self) -> float:
        """This process's part of a batch: what its means over images count for."""
        return (self.rows.stop - self.rows.start) / self.images if not self.alone else 1.0

    def whole(self, own: Tensor) -> Tensor:
        """Rows of all processes from the rows of this one [k n, ...] -> [k B, ...]; gradients go back to their process.

        Row j n + i is draw j of image i, as in `Draws`.
        """
        if self.alone:
            return own
        found: Tensor = _Whole.apply(own, self)
        return found

    def own(self, whole: Tensor) -> Tensor:
        """This process's rows [k n, ...] of those of all [k B, ...]."""
        return whole if self.alone else whole.unflatten(0, (-1, self.images))[:, self.rows].flatten(0, 1)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes; no gradient goes through it."""
        if self.alone:
            return value
        summed = value.detach().clone()
        with connection():
            dist.all_reduce(summed)
        return summed

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of scalars of one device over the processes, in one message."""
        if self.alone:
            return dict(values)
        summed = self.total(torch.stack([value.detach().double() for value in values.values()]))
        return {name: total.to(value.dtype) for (name, value), total in zip(values.items(), summed, strict=True)}

    def any(self, wish: bool) -> bool:
        """Whether some process wishes it; all hear the same answer."""
        return wish if self.alone else bool(self._said(float(wish), dist.ReduceOp.MAX))

    def leaders(self, number: int) -> int:
        """The leader's number; that of the others is not looked at."""
        return number if self.alone else int(self._said(float(number) if self.leads else 0.0, dist.ReduceOp.SUM))

    def agree(self, digits: str, what: str) -> None:
        """Refuse to train together with a process that has something else.

        Args:
            digits: hexadecimal ones, of which the first 12 are compared.
            what: they are of.

        Raises:
            BadInput: another process has others.
        """
        mine = int(digits[:12], 16)
        if self.any(self.leaders(mine) != mine):
            raise BadInput(f"the processes of the trial do not have the same {what}")

    def _said(self, number: float, operation: Any) -> float:
        said = torch.tensor(number, dtype=torch.float64)  # on the CPU, so that no GPU is waited for
        with connection():
            dist.all_reduce(said, operation)
        return float(said)

    def refuse_strays(self, weights: list[Tensor], step: int) -> None:
        """Stop where the processes' weights are no longer the same bits.

        Raises:
            RuntimeError: they differ.
        """
        if self.alone:
            return
        mine = torch.stack([weight.detach().double().sum() for weight in weights]).sum().cpu()
        bounds = torch.stack([mine, -mine])
        with connection():
            dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if mine.isfinite() and float(bounds[0]) != -float(bounds[1]):
            raise RuntimeError(f"step {step}: the weights of the trial's {self.size} processes are no longer the same")


ALONE = Peers()
_ARRIVAL = 300.0
"""Seconds in which the processes of a trial have to meet: each imports torch before."""


class _Whole(torch.autograd.Function):
    """Zeros but for one's own rows, summed over processes: exact, and of any share."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        rows = peers.rows
        draws = len(own) // (rows.stop - rows.start)
        whole = own.new_zeros((draws, peers.images, *own.shape[1:]))
        whole[:, rows] = own.unflatten(0, (draws, -1))
        with connection():
            dist.all_reduce(whole)
        return whole.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Every process has used every row: their gradients are summed."""
        summed = gradients[0].contiguous().clone()
        with connection():
            dist.all_reduce(summed)
        return ctx.peers.own(summed), None


@contextlib.contextmanager
def connection() -> Iterator[None]:
    """Around what exchanges messages: a lost process is reported as one.

    Raises:
        PeerLost: another process of the trial does not answer.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no error class of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise PeerLost(
            f"another process of the trial was lost: {(str(error).splitlines() or [''])[0][:200]}"
        ) from error


@contextlib.contextmanager
def joined(
    rendezvous: str,
    rank: int,
    size: int,
    patience: float,
    device: torch.device,
    lost: Callable[[], str | None] = lambda: None,
) -> Iterator[Peers]:
    """The processes of a trial, connected while the block lasts.

    Args:
        rendezvous: where they meet: `file:PATH` of a file that all see, `tcp:HOST:PORT`, or `env:` under torchrun.
        rank: of this process.
        size: number of processes.
        patience: seconds that a message of another process may take.
        device: where this process trains; messages between GPUs go through NCCL, others through gloo.
        lost: asked while the others are waited for: why one of them will not come, or None.

    Raises:
        PeerLost: the others do not come.
    """
    if rendezvous.startswith("file:") and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nobody outside it can connect
    with connection():
        store = _store(rendezvous, rank, size, patience)
        store.add("arrived", 1)
        until = time.monotonic() + min(patience, _ARRIVAL)
        while store.add("arrived", 0) < size:
            why = lost() or ("they did not start in time" if time.monotonic() > until else None)
            if why is not None:
                raise PeerLost(f"the trial's {size} processes did not meet: {why}")
            time.sleep(0.05)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=patience),
            device_id=device if device.type == "cuda" else None,
        )
    try:
        yield Peers(rank, size)
    finally:
        with contextlib.suppress(Exception):  # one that was lost cannot say goodbye
            dist.destroy_process_group()


def _store(rendezvous: str, rank: int, size: int, patience: float) -> dist.Store:
    kind, _, place = rendezvous.partition(":")
    if kind == "file":
        return dist.FileStore(place, size)
    seconds = datetime.timedelta(seconds=patience)
    if kind == "env":
        found, _, _ = next(dist.rendezvous("env://", rank, size, timeout=seconds))
        return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), found)
    host, _, port = place.rpartition(":")
    return dist.TCPStore(host, int(port), size, is_master=rank == 0, timeout=seconds, wait_for_workers=False)
