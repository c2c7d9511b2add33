"""Weights of others: the only files that dsd-lab downloads, and only when `fetch-weights` is asked to. Hashes are pinned."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.errors import BadInput, NoResources
from dsd_lab.files.atomic import create_beside
from dsd_lab.home.home import Home
from dsd_lab.specs.evaluate_list import sha256_of

_BLOCK, _PATIENCE = 1 << 20, 30.0


@dataclass(frozen=True)
class Weights:
    """A file of weights: its name, its SHA-256, and the library's own constant that holds its address."""

    file: str
    sha256: str
    module: str
    constant: str

    def url(self) -> str:
        """The address that the library itself downloads from."""
        return str(getattr(importlib.import_module(self.module), self.constant))


WEIGHTS = {
    "inception": Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "torch_fidelity.feature_extractor_inceptionv3",
        "URL_INCEPTION_V3",
    ),
}
"""By the name that `fetch-weights` takes; others are one row each."""


def weights_path(name: str, home: Home) -> Path:
    """Where `fetch-weights` puts a file."""
    return home.root / "weights" / WEIGHTS[name].file


def check_weights(name: str, path: Path) -> None:
    """See that a file of weights is there and is the one that is meant.

    Raises:
        BadInput: it is not; the line says how to get it.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file: run `dsd-lab fetch-weights {name}`, or put {WEIGHTS[name].file} there")
    found = sha256_of(path)
    if found != WEIGHTS[name].sha256:
        raise BadInput(
            f"{path}: has the SHA-256 {found[:16]}..., not {WEIGHTS[name].sha256[:16]}...; remove it and run `dsd-lab fetch-weights {name}`"
        )


def fetch(name: str, path: Path, told: Callable[[int, int | None], None] | None = None) -> bool:
    """Download a file of weights to `path`, which is complete and checked or not there; False where it was already.

    Args:
        name: a row of `WEIGHTS`.
        path: what becomes the file.
        told: called with the bytes that have come and those that will.

    Raises:
        BadInput: another file is at `path`.
        NoResources: it cannot be downloaded or written, or something else came.
    """
    if path.exists():
        check_weights(name, path)
        return False
    if path.is_symlink():
        raise BadInput(f"{path}: is a link that leads nowhere; remove it, or put {WEIGHTS[name].file} where it leads")
    by_hand = f"get {WEIGHTS[name].file} (SHA-256 {WEIGHTS[name].sha256}) in another way and put it at {path}"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = create_beside(path)
        digest, come = hashlib.sha256(), 0
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(WEIGHTS[name].url(), timeout=_PATIENCE) as answer:
            length = answer.headers.get("Content-Length")
            while block := answer.read(_BLOCK):
                file.write(block)
                digest.update(block)
                come += len(block)
                if told is not None:
                    told(come, int(length) if length else None)
        if digest.hexdigest() != WEIGHTS[name].sha256:
            raise NoResources(f"{name}: what was downloaded has another SHA-256 than the pinned one; {by_hand}")
        os.replace(temporary, path)
    except (urllib.error.URLError, OSError) as error:
        # Only the kind and number of the fault: an address of a proxy may hold a password.
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        said = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(cause, "strerror", None)
        raise NoResources(f"{name}: cannot be downloaded ({said or type(cause).__name__}); {by_hand}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return True
