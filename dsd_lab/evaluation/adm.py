"""Samples as ADM's TensorFlow evaluator reads them (openai/guided-diffusion, evaluations/evaluator.py)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor


def adm_name(count: int, height: int, width: int) -> str:
    """The name that ADM gives such a file."""
    return f"samples_{count}x{height}x{width}x3.npz"


def write_adm(path: Path, blocks: Iterable[Tensor], y: Tensor, height: int, width: int) -> None:
    """An .npz with the images as `arr_0` [N, H, W, 3] uint8 and their labels as `arr_1` [N] int64; never all in memory.

    Args:
        path: is written.
        blocks: images [n, C, H, W] uint8; grey ones get three equal channels.
        y: labels of all images.
        height: of the images.
        width: of the images.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(y), height, width, 3)}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images in blocks:
                file.write(images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, y.long().numpy(), allow_pickle=False)
