"""The end of preparing: what was written is read again, compared, and hashed to the fingerprint of the source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dsd_lab.core.data.levels import count_levels
from dsd_lab.core.data.prepared import Manifest
from dsd_lab.core.data.progress import tell
from dsd_lab.core.data.records import shown
from dsd_lab.core.preparing.image_files import ImageFile
from dsd_lab.errors import BadInput


def checked(out: Path, made: Manifest, images: ImageFile, labels: np.ndarray, held: np.ndarray) -> Manifest:
    """Read everything again; returns the manifest with the fingerprint and the levels of what is there.

    Raises:
        BadInput: a block has another hash than when it was written.
    """
    digest, levels = hashlib.sha256(), np.zeros((made.shape[0], 256), dtype=np.int64)
    for split in (False, True):
        chosen = held == split
        digest.update(repr((int(chosen.sum()), *made.shape)).encode())
        for number, start in enumerate(range(0, made.count, made.block)):
            rows = range(start, min(start + made.block, made.count))
            own = chosen[rows.start : rows.stop]
            if split and not own.any():
                continue
            if not split:
                tell("images checked", start, made.count)
                if number >= len(made.blocks) or images.digest(rows) != made.blocks[number]:
                    raise BadInput(
                        f"{shown(out)}: images {start:,} to {rows.stop - 1:,} are not what was written; remove the folder, and look at its disk"
                    )
            pixels = np.ascontiguousarray(images.pixels(rows)[own])
            digest.update(pixels.data)
            if not split:
                levels += count_levels(pixels)
        digest.update(labels[chosen].tobytes())
    return made.model_copy(update={"fingerprint": digest.hexdigest(), "levels": levels.tolist()})
