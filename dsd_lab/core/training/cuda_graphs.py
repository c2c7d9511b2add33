"""A step's gradients as a CUDA graph: recorded once, and from then on launched as one.

A small network's step is about a thousand kernels of microseconds, and what it takes on a GPU is the
time in which the host launches them. A graph launches them all at once. It is the same kernels on the
same places in memory, so what the steps give it is copied to where the first one left it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from dsd_lab.core.randomness import Draws

Compute = Callable[[Tensor, Draws], dict[str, Tensor]]

WARM_UP = 3
"""Steps that are computed kernel by kernel first: libraries choose and load their kernels in them."""


class Recorder(Protocol):
    """What turns a computation into one that can be repeated."""

    def warm(self, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute once, as the recording will."""
        ...

    def record(self, compute: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """What the computation leaves, and what does it all over again in the same memory; nothing is computed yet."""
        ...


@cache
def _recording_stream() -> torch.cuda.Stream:
    """One a process: cuBLAS keeps workspaces for every stream that it has seen."""
    return torch.cuda.Stream()


class CudaGraph:
    """Records on a stream of its own, as torch's notes on CUDA graphs have it."""

    def __init__(self) -> None:
        self._stream = _recording_stream()

    def warm(self, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def record(self, compute: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            found = compute()
        return found, graph.replay


class Replay:
    """Computes gradients kernel by kernel three times, and by a recording from then on.

    Args:
        recorder: that records; None: a CUDA graph.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or CudaGraph()
        self._calls = 0
        self._given: list[Tensor] = []
        self._found: dict[str, Tensor] = {}
        self._again: Callable[[], None] | None = None

    def __call__(self, compute: Compute, x: Tensor, draws: Draws) -> dict[str, Tensor]:
        """What `compute` finds for images and random numbers of fixed shapes: scalars, which the next call overwrites.

        It leaves gradients at the weights. What else it reads must keep its place in memory and its
        Python values from call to call, and it must not look at a number.
        """
        self._calls += 1
        if self._calls <= WARM_UP:
            return self.recorder.warm(lambda: compute(x, draws))
        if self._again is None:
            x, draws = x.clone(), draws.map(Tensor.clone)
            self._given = [x, *draws.tensors()]
            self._found, self._again = self.recorder.record(lambda: compute(x, draws))
        else:
            for given, now in zip(self._given, [x, *draws.tensors()], strict=True):
                given.copy_(now)
        self._again()
        return self._found
