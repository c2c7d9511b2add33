"""Samples and their features, made block by block by all processes of a trial and kept until they are measured.

Blocks are files below the home folder's cache, each complete or not there. What was stopped or killed goes on with the
blocks that are missing, with any number of processes. A block has the same images whoever draws it, and its bits too
where the devices are alike, so that metrics do not depend on the number of processes.
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
"""Seconds until a file that another machine wrote is seen in a shared folder."""


class StoppedDrawing(Exception):
    """A signal asked to stop; the blocks that are there are used when it goes on."""


@dataclass(frozen=True)
class Drawn:
    """A number of images in blocks, and what was made of them, as files of a folder."""

    folder: Path
    count: int

    @property
    def blocks(self) -> range:
        """Numbers of all blocks."""
        return range(-(-self.count // BLOCK))

    def rows(self, block: int) -> int:
        """Images of a block."""
        return min(BLOCK, self.count - block * BLOCK)

    def _path(self, name: str, block: int) -> Path:
        return self.folder / f"{name}-{block:06d}.safetensors"

    def lacking(self, name: str) -> list[int]:
        """Blocks that are not there, or damaged."""
        return [block for block in self.blocks if not self._is_whole(name, block)]

    def _is_whole(self, name: str, block: int) -> bool:
        try:
            with safe_open(self._path(name, block), "pt") as file:  # looks at names, shapes and the file's size
                names = list(file.keys())
                return bool(names) and all(file.get_slice(n).get_shape()[0] == self.rows(block) for n in names)
        except (OSError, SafetensorError):
            return False

    def write(self, name: str, block: int, tensors: dict[str, Tensor]) -> None:
        """Keep tensors [n, ...] of a block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(name, block), save({k: v.contiguous() for k, v in tensors.items()}))

    def read(self, name: str, block: int) -> dict[str, Tensor]:
        """What was kept of a block.

        Raises:
            NoResources: another machine wrote it, and the shared folder does not show it.
        """
        path, until = self._path(name, block), time.monotonic() + _APPEARS
        while not path.exists():
            if time.monotonic() > until:
                raise NoResources(f"{path}: another process wrote it, but it is not visible here after {_APPEARS:g} s")
            with contextlib.suppress(OSError):
                os.listdir(self.folder)  # makes a network file system look again
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
        """Free the disk: what was asked of them is recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def drawing_code() -> str:
    """Hash of the code that decides what samples and features are: training code, samplers, sampling, features."""
    package = Path(__file__).parents[1]
    files = ("core/diffusion/samplers.py", "evaluation/sampling.py", "evaluation/features.py", "evaluation/dinov2.py")
    sources = b"".join((package / file).read_bytes() for file in files)
    return hashlib.sha256(training_code().encode() + sources).hexdigest()[:12]


def drawn_of(cache: Path, checkpoints: Path, settings: Generation, y: Tensor, seed: int, purpose: str = "") -> Drawn:
    """Where images of a trial's checkpoint are kept: by its tensors, how and by which code they are sampled, labels y [N] and seed.

    Args:
        cache: of the home.
        checkpoints: of the trial.
        settings: of which only those of the sampling count.
        y: labels.
        seed: of the noise.
        purpose: what they are drawn for, where another process may draw the same ones for something else.

    Raises:
        CorruptCheckpoint: its manifest cannot be read.
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
    told: Callable[[int, int], None] | None,
) -> None:
    """Make the blocks that are lacking, one a process at a time; returns when all are there.

    Args:
        peers: this process among them.
        drawn: where blocks are kept.
        name: of what is made.
        lacking: numbers of blocks, the same in all processes.
        make: gives the tensors of a block.
        stop: asked between blocks; where one process says so, all stop.
        told: called with the images that are made and with their number.

    Raises:
        StoppedDrawing: a process was asked to stop.
        PeerLost: another process is gone.
    """
    there = drawn.count - sum(map(drawn.rows, lacking))
    for first in range(0, len(lacking), peers.size):
        if told is not None:
            told(there, drawn.count)
        if peers.any(stop()):
            raise StoppedDrawing
        turn = lacking[first : first + peers.size]
        if peers.rank < len(turn):
            drawn.write(name, turn[peers.rank], make(turn[peers.rank]))
        there += sum(map(drawn.rows, turn))
    peers.any(False)  # all have written theirs
    if told is not None:
        told(drawn.count, drawn.count)
