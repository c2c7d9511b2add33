"""Sums the gradients of several processes during the backward pass.

Weights are grouped into buckets in the reverse order of the network, which is about the order of the backward pass. A
bucket is reduced when all its gradients are ready and the buckets before it were sent. Buckets and their order are the
same at every step, also after a resume, so the sums are bitwise reproducible.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsd_lab.core.peers import connection

if TYPE_CHECKING:
    from dsd_lab.core.peers import Peers

_BUCKET_BYTES = 25 * 2**20
"""As in torch's DistributedDataParallel."""


class GradientSums:
    """Sums gradients over the processes of a trial.

    Args:
        weights: all trained weights; those without a gradient in a step are skipped.
        peers: the processes.
    """

    def __init__(self, weights: Iterable[nn.Parameter], peers: Peers) -> None:
        self._alone = peers.alone
        self._buckets: list[list[nn.Parameter]] = [[]]
        self._missing: list[set[nn.Parameter]] = []
        self._expected: list[set[nn.Parameter]] | None = None
        """Weights of each bucket that had a gradient at the previous step; None: not known yet."""
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        self.listening = False
        """Whether the current backward pass is the last of the step."""
        if self._alone:
            return
        size = 0
        for weight in reversed(list(weights)):
            if size + weight.nbytes > _BUCKET_BYTES and self._buckets[-1]:
                self._buckets.append([])
                size = 0
            self._buckets[-1].append(weight)
            size += weight.nbytes
            weight.register_post_accumulate_grad_hook(self._arrived)
        self._place = {weight: place for place, bucket in enumerate(self._buckets) for weight in bucket}

    def forget(self) -> None:
        """Forget which weights have gradients, since another stage begins."""
        self._expected = None

    def begin(self) -> None:
        """Call before the last backward pass of a step."""
        self.listening = not self._alone
        self._missing = [set(weights) for weights in self._expected or ()]

    def _arrived(self, weight: Tensor) -> None:
        if not self.listening or self._expected is None:
            return
        self._missing[self._place[weight]].discard(weight)  # type: ignore[index]
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send(self._buckets[len(self._sent)])

    def _send(self, bucket: list[nn.Parameter]) -> None:
        gradients = [weight.grad for weight in bucket if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) if gradients else torch.zeros(0)
        with connection():
            self._sent.append((gradients, flat, dist.all_reduce(flat, async_op=True)))

    def end(self) -> None:
        """Wait until every gradient is the sum over all processes.

        Raises:
            PeerLost: another process does not answer.
        """
        self.listening = False
        if self._alone:
            return
        while len(self._sent) < len(self._buckets):
            self._send(self._buckets[len(self._sent)])
        self._expected = [{w for w in bucket if w.grad is not None} for bucket in self._buckets]
        for gradients, flat, sent in self._sent:
            with connection():
                sent.wait()
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
        self._sent = []
