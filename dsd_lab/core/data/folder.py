"""Image folders: ImageNet's and torchvision's ImageFolder's layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsd_lab.core.data.assembly import assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.records import FileRecords, shown
from dsd_lab.errors import BadInput

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_HELD_OUT = ("val", "validation", "test")
"""Folders of held-out images; the first that is there is taken (ImageNet's `test` has no labels)."""


def load_folder(spec: Data, cache: Path | None) -> DataSet:
    """One sub-folder a class, numbered in the order of their sorted names, with images at any depth below it.

    `train/` and one of `val/`, `validation/`, `test/` hold the classes where they are there (a folder of
    that name that holds no folders is a class); else a seeded fraction is held out. Names that begin with
    a dot are passed over, and so are files beside the class folders.

    Raises:
        BadInput: there is no class, a class has no image, or a link leads outside the data's folder.
    """
    assert spec.path is not None
    root = Path(spec.path)
    splits = [name for name in ("train", *_HELD_OUT) if any(_folders(root / name))]
    if splits and splits[0] != "train":
        raise BadInput(f"{shown(root)}: has {splits[0]}/ but no train/; name the folder that holds the classes")
    base = root / "train" if splits else root
    classes = [folder.name for folder in _folders(base)]
    if not classes:
        raise BadInput(f"{shown(base)}: holds no sub-folders; an image folder has one for every class")
    train = _records(root, base, classes)
    counts = torch.bincount(train.labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if not count:
            raise BadInput(f"{shown(base / name)}: a class without images; remove the folder, or fill it")
    holdout = None
    if len(splits) > 1:
        held = root / splits[1]
        for folder in _folders(held):
            if folder.name not in classes:
                raise BadInput(f"{shown(folder)}: no class of this name in {shown(base)}")
        holdout = _records(root, held, classes)
        if not len(holdout):
            raise BadInput(f"{shown(held)}: holds no images")
    return assemble(spec, train, holdout, tuple(shown(name) for name in classes), cache)


def _folders(folder: Path) -> list[Path]:
    """Sub-folders in the order of their names."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInput(f"{shown(folder)}: cannot be read: {error.strerror}") from None


def _records(root: Path, base: Path, classes: list[str]) -> FileRecords:
    inside = os.path.realpath(root)
    _check_link(str(base), inside)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (base / name).is_dir():
            found = sorted(_files(str(base / name), inside, ()))
            paths += found
            labels += [label] * len(found)
    return FileRecords(paths, torch.tensor(labels, dtype=torch.int64))


def _files(folder: str, inside: str, above: tuple[str, ...]) -> list[str]:
    """All files below a folder; links are followed within `inside`, and refused where they lead out of it or in a circle."""
    here = _check_link(folder, inside)
    if here in above:
        raise BadInput(f"{shown(folder)}: a link to a folder that holds it")
    found = []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise BadInput(f"{shown(folder)}: cannot be read: {error.strerror}") from None
    for entry in entries:
        link = entry.is_symlink()
        if os.path.isdir(entry.path) if link else entry.is_dir():
            found += _files(entry.path, inside, (*above, here))
            continue
        if link:
            _check_link(entry.path, inside)
        # A link into nothing is left to the decoder, which refuses or skips it as it does damaged images.
        if (os.path.exists(entry.path) and not os.path.isfile(entry.path)) if link else not entry.is_file():
            raise BadInput(f"{shown(entry.path)}: neither a file nor a folder")
        found.append(entry.path)
    return found


def _check_link(path: str, inside: str) -> str:
    target = os.path.realpath(path)
    if target != inside and not target.startswith(inside.rstrip("/") + "/"):
        raise BadInput(f"{shown(path)}: a link that leads outside {shown(inside)}; copy what it names")
    return target
