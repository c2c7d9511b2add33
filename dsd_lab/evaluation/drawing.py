"""Samples and their features: computed in blocks by all processes of a trial, and kept on disk until they are measured.

Blocks are files in the home folder's cache; each is complete or missing. After an interruption, only missing blocks are
computed, by any number of processes. The images of a block do not depend on the process that draws it, and on equal
devices neither do their bits, so metrics do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from dsd_lab.core.peers import Peers
from dsd_lab.errors import CorruptCheckpoint, NoResources
from dsd_lab.evaluation.sampling import BLOCK, checkpoint_of
from dsd_lab.files.atomic import write_atomic
from dsd_lab.files.bounded import read_json
from dsd_lab.files.checkpoint_manifest import CheckpointContent
from dsd_lab.files.printable import one_line
from dsd_lab.home.names import drawing_path
from dsd_lab.specs.identity import sampling_settings
from dsd_lab.training_code import training_code

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Generation

IMAGES = "images"
_APPEARS = 60.0
"""Maximum seconds until a file that another machine wrote is visible in a shared folder."""


class StoppedDrawing(Exception):
    """Sampling was stopped by a signal; the next run uses the finished blocks."""


@dataclass(frozen=True)
class Drawn:
    """Images in blocks, and their features, as files in a folder."""

    folder: Path
    count: int

    @property
    def blocks(self) -> range:
        """Indices of all blocks."""
        return range(-(-self.count // BLOCK))

    def rows(self, block: int) -> int:
        """Number of images in a block."""
        return min(BLOCK, self.count - block * BLOCK)

    def _path(self, name: str, block: int) -> Path:
        return self.folder / f"{name}-{block:06d}.safetensors"

    def lacking(self, name: str) -> list[int]:
        """Indices of missing and damaged blocks."""
        return [block for block in self.blocks if not self._is_whole(name, block)]

    def _is_whole(self, name: str, block: int) -> bool:
        try:
            with safe_open(self._path(name, block), "pt") as file:  # checks names, shapes and the file's size
                names = list(file.keys())
                return bool(names) and all(file.get_slice(n).get_shape()[0] == self.rows(block) for n in names)
        except (OSError, SafetensorError):
            return False

    def write(self, name: str, block: int, tensors: dict[str, Tensor]) -> None:
        """Write tensors [n, ...] of a block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(name, block), save({k: v.contiguous() for k, v in tensors.items()}))

    def read(self, name: str, block: int) -> dict[str, Tensor]:
        """Read the tensors of a block.

        Raises:
            NoResources: another machine wrote it, but it does not appear in the shared folder.
        """
        path, until = self._path(name, block), time.monotonic() + _APPEARS
        while not path.exists():
            if time.monotonic() > until:
                raise NoResources(f"{path}: another process wrote it, but it is not visible here after {_APPEARS:g} s")
            with contextlib.suppress(OSError):
                os.listdir(self.folder)  # makes a network file system refresh its cache
            time.sleep(0.1)
        return load_file(path)

    def images(self) -> Iterator[Tensor]:
        """The images of each block, [n, C, H, W] uint8."""
        return (self.read(IMAGES, block)[IMAGES] for block in self.blocks)

    def whole(self) -> Tensor:
        """All images [N, C, H, W] uint8, in memory."""
        return torch.cat(list(self.images()))

    def first(self, count: int) -> Tensor:
        """The first images, at most those of one block."""
        return next(self.images())[:count]

    def remove(self) -> None:
        """Delete the folder, after the metrics are recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def drawing_code() -> str:
    """Hash of the code that determines samples and features: training code, samplers, sampling, features."""
    package = Path(__file__).parents[1]
    files = ("core/diffusion/samplers.py", "evaluation/sampling.py", "evaluation/features.py", "evaluation/dinov2.py")
    sources = b"".join((package / file).read_bytes() for file in files)
    return hashlib.sha256(training_code().encode() + sources).hexdigest()[:12]


def drawn_of(cache: Path, checkpoints: Path, settings: Generation, y: Tensor, seed: int, purpose: str = "") -> Drawn:
    """The images of a trial's checkpoint. Their folder is named by its tensors, sampling settings, code, labels y [N] and seed.

    Args:
        cache: cache folder of the home.
        checkpoints: folder of the trial's checkpoints.
        settings: settings of the evaluation; only those of the sampling count.
        y: labels [N].
        seed: seed of the noise.
        purpose: separates these images from equal ones that another process may draw for something else.

    Raises:
        CorruptCheckpoint: the checkpoint's manifest cannot be read.
    """
    checkpoint = checkpoint_of(checkpoints, settings.checkpoint)
    try:
        tensors = CheckpointContent.model_validate(read_json(checkpoint / "manifest.json")).sha256
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{checkpoint}: {type(error).__name__}: {one_line(str(error), 300)}") from None
    content = [drawing_code(), tensors, sampling_settings(settings), y.tolist(), seed, purpose]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Drawn(drawing_path(cache, checkpoints.parent.name, digest), len(y))


def take_turns(
    peers: Peers,
    drawn: Drawn,
    name: str,
    lacking: Sequence[int],
    make: Callable[[int], dict[str, Tensor]],
    stop: Callable[[], bool],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Compute missing blocks, one per process at a time. Returns when all exist.

    Args:
        peers: this process among those of the trial.
        drawn: folder of the blocks.
        name: name of the blocks: images, or the features of an extractor.
        lacking: indices of the missing blocks, equal in all processes.
        make: returns the tensors of a block.
        stop: called between blocks; if it is true in one process, all stop.
        on_progress: called with the number of finished images and the total.

    Raises:
        StoppedDrawing: `stop` was true in a process.
        PeerLost: another process is lost.
    """
    there = drawn.count - sum(map(drawn.rows, lacking))
    for first in range(0, len(lacking), peers.size):
        if on_progress is not None:
            on_progress(there, drawn.count)
        if peers.any(stop()):
            raise StoppedDrawing
        turn = lacking[first : first + peers.size]
        if peers.rank < len(turn):
            drawn.write(name, turn[peers.rank], make(turn[peers.rank]))
        there += sum(map(drawn.rows, turn))
    peers.any(False)  # waits until every process has written its block
    if on_progress is not None:
        on_progress(drawn.count, drawn.count)
