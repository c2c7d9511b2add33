"""Image folders: one sub-folder per class (as ImageNet), a `dataset.json` (as StyleGAN), or images without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.data.assembly import Found, assemble
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.folder_layout import LABELS, Tree, check_level, descended, splits_of
from dsd_lab.core.data.layout import class_order, is_image_name
from dsd_lab.core.data.records import FileRecords, shown
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, read_plain

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

_JSON, _LABEL = 2**20, 1024
"""Bytes that a `dataset.json` may have, and for each image beside it."""
Listed = dict[str | None, list[str]]
"""Class name -> paths of its images; the key is None for images without labels."""


def load_folder(spec: Data, cache: Path | None) -> DataSet:
    """The images of a folder, as `find_folder` reads it."""
    return assemble(spec, find_folder(spec), cache)


def find_folder(spec: Data) -> Found:
    """List the images of a folder: one sub-folder per class, a `dataset.json`, or images without labels.

    A class folder may have sub-folders. A training split and the first of `val/`, `valid/`, `validation/`, `dev/`,
    `test/` are used if they hold class folders; case does not matter, and `Training/`, `Testing/` and `seg_train/`
    are known too. Otherwise a fixed fraction is held out. Classes are numbered in the order of their names, numeric
    names by value. Names that begin with a dot are ignored.

    Raises:
        BadInput: the folder is above or below the level of the classes, a split or an image would be ignored,
            a class has no image, or a link leads outside the data folder.
    """
    assert spec.path is not None
    root = Path(spec.path)
    tree = Tree(root)
    splits = None if (root / LABELS).is_file() else splits_of(tree, root)
    base = root if splits is None else descended(tree, splits.train)
    trained = _listed(tree, base, named=splits is None)
    classes = class_order(name for name in trained if name is not None)
    holdout, origin = None, ""
    if splits is not None and splits.held is not None:
        held = _listed(tree, descended(tree, splits.held), named=False, training=False)
        check_held(splits.held, held, base, trained)
        holdout, origin = FileRecords(*in_order_of(classes, held)), f"{shown(splits.held.name)}/"
    notes = (*(splits.notes if splits is not None else ()), *tree.notes, *tree.leftovers.notes())
    return Found(FileRecords(*in_order_of(classes, trained)), holdout, tuple(map(shown, classes)), origin, notes)


def _listed(tree: Tree, base: Path, named: bool, training: bool = True) -> Listed:
    """The images of one split."""
    if (base / LABELS).is_file():
        return _by_labels(tree, base)
    folders = tree.folders(base)
    if training:
        check_level(tree, base, named)
    if not folders:
        images = tree.loose(base) if base.is_dir() else []
        if not images:
            raise BadInput(
                f"{shown(base)}: holds no sub-folders; an image folder has one for every class, or images alone"
            )
        return {None: images}
    found: Listed = {folder.name: tree.files(folder) for folder in folders}
    for name, files in found.items():
        if not files and training:
            raise BadInput(f"{shown(base / str(name))}: a class without images; remove the folder, or fill it")
    return found


def _by_labels(tree: Tree, base: Path) -> Listed:
    """Images labelled by a `dataset.json`: `{"labels": [["00000/img00000000.png", 6], ...]}`, or null without labels."""
    files = {Path(file).relative_to(base).as_posix(): file for file in tree.files(base) if is_image_name(file)}
    if not files:
        raise BadInput(f"{shown(base)}: holds {LABELS} and no images")
    try:
        raw = read_plain(base / LABELS, labels_limit(len(files)))
    except BadFile as error:
        raise BadInput(
            f"{shown(base / LABELS)}: {error.strerror}: too much for the {len(files):,} images beside it"
        ) from None
    return by_labels(raw, base / LABELS, files)


def labels_limit(images: int) -> int:
    """Bytes that a `dataset.json` of so many images may have."""
    return _JSON + _LABEL * images


def by_labels(raw: bytes, path: str | Path, files: dict[str, str]) -> Listed:
    """The images that a `dataset.json` numbers, by the names of their classes.

    Args:
        raw: its bytes.
        path: what messages call it.
        files: of every image, in their order: what reads it by its name in `dataset.json`.

    Raises:
        BadInput: it is damaged, names an image that is not there, or leaves one out.
    """
    try:
        labels = json.loads(raw)["labels"]
        if not labels:
            return {None: list(files.values())}
        numbers = {str(name): label for name, label in labels}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInput(f'{shown(path)}: not {{"labels": [[FILE, CLASS], ...]}}, as StyleGAN and EDM write it') from None
    found: Listed = {}
    for name, label in numbers.items():
        if type(label) is not int or label < 0:
            raise BadInput(
                f"{shown(path)}: the label {shown(repr(label))[:100]} of {shown(name)} is no class; classes are numbered from 0"
            )
        if name not in files:
            raise BadInput(f"{shown(path)}: names {shown(name)}, which is not there; complete the download")
    for name, file in files.items():
        if name not in numbers:
            raise BadInput(f"{shown(file)}: {LABELS} has no label for it; remove it, or add one")
        found.setdefault(str(numbers[name]), []).append(file)
    return found


def check_held(folder: Path, held: Listed, base: Path, trained: Listed) -> None:
    """Check that every held-out class is a training class.

    Raises:
        BadInput: a held-out class is unknown; the message names the folder.
    """
    if not any(held.values()):
        raise BadInput(f"{shown(folder)}: holds no images")
    if (None in held) != (None in trained):
        one, other = (folder, base) if None in held else (base, folder)
        raise BadInput(
            f"{shown(one)}: has no class folders, and {shown(other)} has some; sort its images into such folders"
        )
    for name in held:
        if name not in trained:
            hint = "; sort its images into folders named after the classes" if name == "images" else ""
            raise BadInput(f"{shown(folder / str(name))}: no class of this name in {shown(base)}{hint}")


def in_order_of(classes: list[str], listed: Listed) -> tuple[list[str], Tensor]:
    """Paths of the images, class by class, and their class numbers [N]."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes or [None]):
        paths += listed.get(name, [])
        labels += [label] * (len(paths) - len(labels))
    return paths, torch.tensor(labels, dtype=torch.int64)
