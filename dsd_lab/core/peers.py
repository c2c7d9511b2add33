"""Data parallelism: the processes that train one trial. Each takes its share of every batch; all take the same step.

Every process draws the random numbers of the whole batch and keeps the rows of its own images. Losses are means over
images, so the gradient is the sum of the processes' shares. Terms that are not means over images are computed from
the latents of all processes (`Peers.whole`). The order of summation depends on the number of processes N: the last
bits differ between different N and are equal for equal N.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from dsd_lab.errors import BadInput, PeerLost


@dataclass(frozen=True)
class Peers:
    """This process among those of its trial.

    Args:
        rank: 0 to size - 1. Process 0 is the leader: only it probes, draws pictures, saves and records.
        size: number of processes.
        images: images in a whole batch, or in one micro-batch where gradients are accumulated.
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
        """The same process for batches of `images` images."""
        return replace(self, images=images)

    @property
    def rows(self) -> slice:
        """This process's rows of a batch; shares differ by one image at most."""
        return slice(self.rank * self.images // self.size, (self.rank + 1) * self.images // self.size)

    @property
    def share(self) -> float:
        """This process's fraction of a batch: the weight of its means over images."""
        return (self.rows.stop - self.rows.start) / self.images if not self.alone else 1.0

    def whole(self, own: Tensor) -> Tensor:
        """Gather rows: those of this process [k n, ...] -> those of all [k B, ...]; gradients flow back to their process.

        Row j n + i is draw j of image i, as in `Draws`.
        """
        if self.alone:
            return own
        found: Tensor = _Gather.apply(own, self)
        return found

    def own(self, whole: Tensor) -> Tensor:
        """This process's rows: those of all processes [k B, ...] -> [k n, ...]."""
        return whole if self.alone else whole.unflatten(0, (-1, self.images))[:, self.rows].flatten(0, 1)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, without gradient."""
        if self.alone:
            return value
        summed = value.detach().clone()
        with connection():
            dist.all_reduce(summed)
        return summed

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of scalars over the processes, in one message; all scalars are on one device."""
        if self.alone:
            return dict(values)
        summed = self.total(torch.stack([value.detach().double() for value in values.values()]))
        return {name: total.to(value.dtype) for (name, value), total in zip(values.items(), summed, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process gets the same answer."""
        return flag if self.alone else bool(self._reduced(float(flag), dist.ReduceOp.MAX))

    def leaders(self, number: int) -> int:
        """The leader's number, in every process."""
        return number if self.alone else int(self._reduced(float(number) if self.leads else 0.0, dist.ReduceOp.SUM))

    def agree(self, text: str, what: str) -> None:
        """Check that all processes have the same text, by 48 bits of its SHA-256 hash.

        Args:
            text: a fingerprint, say.
            what: what the text stands for, for the message.

        Raises:
            BadInput: another process has another text.
        """
        mine = int(sha256(text.encode()).hexdigest()[:12], 16)
        if self.any(self.leaders(mine) != mine):
            raise BadInput(f"the processes of the trial do not have the same {what}")

    def _reduced(self, number: float, operation: Any) -> float:
        reduced = torch.tensor(number, dtype=torch.float64)  # on the CPU: no synchronisation with a GPU
        with connection():
            dist.all_reduce(reduced, operation)
        return float(reduced)

    def check_equal_weights(self, weights: list[Tensor], step: int) -> None:
        """Check that all processes have bitwise equal weights.

        Raises:
            RuntimeError: the weights differ.
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
_MAX_CONNECT_SECONDS = 300.0
"""Seconds that the processes of a trial have to connect; importing torch is part of them."""
_GLOO = "GLOO_SOCKET_IFNAME"


class _Gather(torch.autograd.Function):
    """All-gather as a sum over processes: each adds its own rows to zeros. Exact, and shares may differ in size."""

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
        """Every process uses every row, so the gradients are summed."""
        summed = gradients[0].contiguous().clone()
        with connection():
            dist.all_reduce(summed)
        return ctx.peers.own(summed), None


@contextlib.contextmanager
def connection() -> Iterator[None]:
    """Context of an exchange between processes: turns errors of torch.distributed into `PeerLost`.

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
    listening: socket.socket | None = None,
) -> Iterator[Peers]:
    """Connect the processes of a trial for the duration of the block.

    Args:
        rendezvous: how they find each other: `file:PATH` of a shared file, `tcp:HOST:PORT`, or `env:` under torchrun.
        rank: rank of this process.
        size: number of processes.
        patience: time-out of one message, in seconds.
        device: where this process trains; GPUs use NCCL, CPUs gloo.
        lost: polled while waiting: why another process will never connect, or None.
        listening: of the leader: a socket bound to the address of a `tcp:` rendezvous.

    Raises:
        PeerLost: another process does not connect.
    """
    with connection(), _through(_interface(rendezvous)):
        store = _store(rendezvous, rank, size, patience, listening)
        store.add("arrived", 1)
        until = time.monotonic() + min(patience, _MAX_CONNECT_SECONDS)
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
        with contextlib.suppress(Exception):  # fails where another process was lost
            dist.destroy_process_group()


def _store(rendezvous: str, rank: int, size: int, patience: float, listening: socket.socket | None) -> dist.Store:
    kind, _, place = rendezvous.partition(":")
    if kind == "file":
        return dist.FileStore(place, size)
    seconds = datetime.timedelta(seconds=patience)
    if kind == "env":
        found, _, _ = next(dist.rendezvous("env://", rank, size, timeout=seconds))
        return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), found)
    host, _, port = place.rpartition(":")
    handle = None if listening is None else listening.detach()
    return dist.TCPStore(
        host,
        int(port),
        size,
        is_master=rank == 0,
        timeout=seconds,
        wait_for_workers=False,
        master_listen_fd=handle,
    )


def _interface(rendezvous: str) -> str | None:
    """Network interface through which this process reaches the others; None where that cannot be told.

    Gloo itself takes the one of the machine's name, which many machines have at 127.0.0.1, where no other reaches it.
    """
    kind, _, place = rendezvous.partition(":")
    names = [name for _, name in socket.if_nameindex()]
    if kind == "file":
        return "lo" if "lo" in names else None  # one machine: nobody outside it can connect
    host = os.environ.get("MASTER_ADDR", "") if kind == "env" else place.rpartition(":")[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: the kernel only chooses the address that it would send from
        mine, known = probe.getsockname()[0], psutil.net_if_addrs()
        return next((name for name, found in known.items() if any(a.address == mine for a in found)), None)
    return None


@contextlib.contextmanager
def _through(interface: str | None) -> Iterator[None]:
    """Gloo connects through this interface while the block lasts, unless the user has named one."""
    if interface is None or _GLOO in os.environ:
        yield
        return
    os.environ[_GLOO] = interface
    try:
        yield
    finally:
        del os.environ[_GLOO]
