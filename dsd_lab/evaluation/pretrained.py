"""Weights of others, which `fetch-weights` downloads when it is asked to. Hashes are pinned."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.files.download import download
from dsd_lab.files.sha256 import sha256_of
from dsd_lab.home.home import Home


@dataclass(frozen=True)
class Weights:
    """A file of weights: its name, its SHA-256, and the constant of a library that has its URL."""

    file: str
    sha256: str
    module: str
    constant: str
    """Name of the constant; `A:B` is the entry of model B in table A."""

    def url(self) -> str:
        """The URL from which the library downloads."""
        name, _, model = self.constant.partition(":")
        found = getattr(importlib.import_module(self.module), name)
        return str(found[model].default.url if model else found)


WEIGHTS = {
    "inception": Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "torch_fidelity.feature_extractor_inceptionv3",
        "URL_INCEPTION_V3",
    ),
    "dinov2": Weights(
        "dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        "timm.models.vision_transformer",
        "default_cfgs:vit_large_patch14_dinov2",
    ),
}
"""By the argument of `fetch-weights`."""


def weights_path(name: str, home: Home) -> Path:
    """Where `fetch-weights` puts a file."""
    return home.root / "weights" / WEIGHTS[name].file


def check_weights(name: str, path: Path) -> None:
    """Check that a file of weights exists and has the pinned hash.

    Raises:
        BadInput: it does not; the message says how to get it.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file: run `dsd-lab fetch-weights {name}`, or put {WEIGHTS[name].file} there")
    found = sha256_of(path)
    if found != WEIGHTS[name].sha256:
        raise BadInput(
            f"{path}: has the SHA-256 {found[:16]}..., not {WEIGHTS[name].sha256[:16]}...; remove it and run `dsd-lab fetch-weights {name}`"
        )


def fetch(name: str, path: Path, progress: bool = False) -> bool:
    """Download a file of weights to `path` and check its hash; False if it existed already.

    Raises:
        BadInput: another file is at `path`.
        NoResources: it cannot be downloaded or written, or has another hash.
    """
    if path.exists():
        check_weights(name, path)
        return False
    if path.is_symlink():
        raise BadInput(f"{path}: is a link that leads nowhere; remove it, or put {WEIGHTS[name].file} where it leads")
    download(name, [WEIGHTS[name].url()], path, WEIGHTS[name].sha256, progress=progress)
    return True
