"""The images of a split, in memory or streamed from disk, behind one interface.

Both give the same values for the same indices, so a trial's result does not depend on where its images are stored.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

BATCHES_AHEAD = 2
"""Batches that a streamed split decodes ahead; bounds its memory."""

_MAX_GPU_SHARE = 0.1
"""Maximum fraction of a GPU's free memory for a copy of all images; larger sets are sent batch by batch."""


class Split(ABC):
    """Images of one shape with labels [N] int64."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """Histogram of pixel values per channel, [C, 256] int64."""

    @abstractmethod
    def bytes_at(self, indices: Tensor) -> Tensor:
        """Images [B, C, H, W] uint8 on the CPU, in the order of the indices [B]."""

    def prefetch(self, batches: Iterable[Tensor]) -> None:
        """Start decoding the batches with these indices [B], which will be read next; a no-op in memory."""
        return

    def at(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images as float [B, C, H, W] in [-1, 1] and labels [B], on a device."""
        pixels = self.bytes_at(indices)
        if device.type == "cuda":
            pixels = pixels.pin_memory()  # a copy is asynchronous only from pinned memory
        return as_floats(pixels.to(device, non_blocking=True)), self.labels[indices.cpu()].to(device, non_blocking=True)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in order: images [B, C, H, W] uint8 and labels [B], B at most `size`."""
        parts = torch.arange(len(self)).split(size)
        for i, indices in enumerate(parts):
            pixels = self.bytes_at(indices)
            self.prefetch(parts[i + 1 : i + 1 + BATCHES_AHEAD])
            yield pixels, self.labels[indices]


@dataclass(frozen=True)
class Images(Split):
    """Images in memory: pixels [N, C, H, W] uint8 and labels [N] int64."""

    pixels: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def levels(self) -> Tensor:
        planes = self.pixels.transpose(0, 1)
        return torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in planes])

    def bytes_at(self, indices: Tensor) -> Tensor:
        return self.pixels[indices.cpu()]

    def at(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        there = self._on(device)
        if there is None:
            return super().at(indices, device)
        pixels, labels = there
        chosen = indices.to(device, non_blocking=True)
        return as_floats(pixels[chosen]), labels[chosen]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Pixels and labels on a device, copied once; None if they would take too much of its memory."""
        if device.type == self.pixels.device.type:
            return self.pixels, self.labels
        if device not in self._copies:
            fits = device.type != "cuda" or self.pixels.numel() <= _MAX_GPU_SHARE * torch.cuda.mem_get_info(device)[0]
            self._copies[device] = (self.pixels.to(device), self.labels.to(device)) if fits else None
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor] | None]:
        return {}


class StreamedImages(Split):
    """Images that worker threads decode from disk, on demand or ahead.

    Pillow decodes without the GIL, so threads are enough.

    Args:
        decode: i -> image [C, H, W] uint8; called from several threads at once.
        labels: classes [N].
        shape: channels, height and width.
        levels: histogram of pixel values per channel [C, 256], from the survey.
        workers: number of threads; 0 decodes in the caller's thread.
        gather: copies the images of a batch of indices into pixels [B, C, H, W], where that is faster than one by one.
    """

    def __init__(
        self,
        decode: Callable[[int], np.ndarray],
        labels: Tensor,
        shape: tuple[int, int, int],
        levels: Tensor,
        workers: int,
        gather: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self.labels, self._gather = labels, gather
        self._decode, self._shape, self._levels, self._workers = decode, shape, levels, workers
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: dict[bytes, tuple[Tensor, list[Future[None]]]] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def levels(self) -> Tensor:
        return self._levels

    def bytes_at(self, indices: Tensor) -> Tensor:
        key = _key(indices)
        pixels, parts = self._ahead.pop(key) if key in self._ahead else self._begin(indices)
        for part in parts:
            part.result()  # re-raises an exception of the thread
        return pixels

    def prefetch(self, batches: Iterable[Tensor]) -> None:
        if not self._workers:
            return
        wanted = {_key(indices): indices for indices in batches}
        for key in self._ahead.keys() - wanted.keys():
            for part in self._ahead.pop(key)[1]:
                part.cancel()
        for key, indices in wanted.items():
            if key not in self._ahead:
                self._ahead[key] = self._begin(indices)

    def _begin(self, indices: Tensor) -> tuple[Tensor, list[Future[None]]]:
        pixels = torch.empty((len(indices), *self._shape), dtype=torch.uint8)
        fill = self._gather or partial(_fill, self._decode)
        if not self._workers:
            fill(pixels, indices)
            return pixels, []
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
            weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)
        share = max(1, -(-len(indices) // self._workers))
        pairs = zip(pixels.split(share), indices.split(share), strict=True)
        return pixels, [self._threads.submit(fill, *pair) for pair in pairs]


def as_floats(pixels: Tensor) -> Tensor:
    """Pixels [...] uint8 -> float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _key(indices: Tensor) -> bytes:
    return indices.cpu().numpy().tobytes()


def _fill(decode: Callable[[int], np.ndarray], pixels: Tensor, indices: Tensor) -> None:
    """Decode images into pixels [B, C, H, W]. Not a method: a task that refers to the split would keep it alive."""
    for place, i in zip(pixels.numpy(), indices.tolist(), strict=True):
        place[...] = decode(i)
