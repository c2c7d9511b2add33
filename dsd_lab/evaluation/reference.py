"""Reads published reference statistics, and checks the files that evaluations need before anything is trained."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsd_lab.errors import BadInput
from dsd_lab.evaluation.pretrained import check_weights, weights_path
from dsd_lab.files.bounded import open_plain
from dsd_lab.files.printable import one_line
from dsd_lab.files.sha256 import sha256_of

if TYPE_CHECKING:
    from dsd_lab.evaluation.distances import Statistics
    from dsd_lab.home.home import Home
    from dsd_lab.specs.trial import Generation

DIMENSIONS = {"indomain": 64, "inception": 2048, "dinov2": 1024}
"""Number of features of each extractor."""
_SPATIAL_DIMENSIONS = 2023
_HEADER, _WIDEST = 2**16, 16
"""Bytes of the header of an array, and of a number."""


def weights_of(evaluation: Generation, home: Home) -> Path:
    """The weights of an evaluation's extractor: the file that it names, else the one in the home folder."""
    named = evaluation.inception_weights if evaluation.extractor == "inception" else evaluation.dinov2_weights
    return weights_path(evaluation.extractor, home) if named is None else Path(named)


def check_files(evaluations: list[Generation], home: Home) -> None:
    """Check the weights and reference statistics of evaluations.

    Raises:
        BadInput: a file is missing, changed or has other features; the message says which and what to do.
    """
    for check in _checks(evaluations, home):
        check()


def unusable_files(evaluations: list[Generation], home: Home) -> list[str]:
    """One line per unusable file."""
    found: dict[str, None] = {}
    for check in _checks(evaluations, home):
        try:
            check()
        except BadInput as error:
            found[str(error)] = None
    return list(found)


def _checks(evaluations: list[Generation], home: Home) -> list[Callable[[], object]]:
    weights = sorted({(e.extractor, weights_of(e, home)) for e in evaluations if e.extractor != "indomain"})
    named = [e for e in evaluations if e.reference is not None]
    return [
        *(partial(check_weights, name, path) for name, path in weights),
        *(partial(read_reference, e) for e in named if "fid" in e.measured),
        *(partial(read_reference, e, spatial=True) for e in named if "sfid" in e.measured),
    ]


def read_reference(evaluation: Generation, spatial: bool = False) -> Statistics:
    """The reference statistics of an evaluation, in float64; pickles are not read.

    Args:
        evaluation: its `reference` is the file.
        spatial: read those of sFID, called `mu_s` and `sigma_s` in ADM's files.

    Raises:
        BadInput: the file is missing or changed, has no statistics, or has another number of features.
    """
    assert evaluation.reference is not None
    path, size = Path(evaluation.reference), _SPATIAL_DIMENSIONS if spatial else DIMENSIONS[evaluation.extractor]
    names, of = (("mu_s", "sigma_s"), "sfid") if spatial else (("mu", "sigma"), f"extractor: {evaluation.extractor}")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; `reference` names an .npz with mu and sigma")
    if evaluation.reference_sha256 not in (None, sha256_of(path)):
        raise BadInput(f"{path}: has changed since the spec was read: its SHA-256 is {sha256_of(path)}")
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            raw = {name: _unpacked(archive, f"{name}.npy", size) for name in names}
            shapes = {name: _declared(content) for name, content in raw.items()}
            fits = list(shapes.values()) == [(size,), (size, size)]
            values = [_array(content) for content in raw.values()] if fits else []
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BadInput(f"{path}: not an .npz with {' and '.join(names)}: {one_line(reason, 300)}") from None
    if not fits:
        given = " and ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise BadInput(f"{path}: {given} are not of the {size} features of `{of}`")
    found = dict(zip(("mu", "sigma"), values, strict=True))
    if not all(np.isfinite(part).all() for part in found.values()):
        raise BadInput(f"{path}: {names[0]} or {names[1]} is not finite")
    return found


def _unpacked(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """A member of an archive, no further than statistics of so many features can reach."""
    with archive.open(name) as file:
        return file.read(_HEADER + _WIDEST * size * size)


def _declared(raw: bytes) -> tuple[int, ...]:
    """The shape that an array in numpy's format declares; numpy makes room for it before it reads one number."""
    file = io.BytesIO(raw)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, kind = read[np.lib.format.read_magic(file)](file)
    if kind.kind not in "fiu":
        raise ValueError(f"holds {kind}, not numbers")
    return tuple(shape)


def _array(raw: bytes) -> NDArray[np.float64]:
    return np.asarray(np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False), dtype=np.float64)
