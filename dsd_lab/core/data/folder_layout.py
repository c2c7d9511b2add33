"""Layout of an image folder: its splits, the level of its class folders, and the walk over its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.core.data.layout import TRAIN, Leftovers, SplitName, is_image_name, split_name
from dsd_lab.core.data.records import shown
from dsd_lab.errors import BadInput

LABELS = "dataset.json"
"""Labels of all images below its folder, as StyleGAN and EDM write them."""


class Tree:
    """The folders and files below a root. Files left by file managers are ignored and counted.

    Args:
        root: links are followed inside it; links that lead outside or in a circle are refused.
    """

    def __init__(self, root: Path) -> None:
        self._inside = os.path.realpath(root)
        self.leftovers = Leftovers()
        self.notes: list[str] = []

    def folders(self, folder: Path) -> list[Path]:
        """Sub-folders in the order of their names."""
        try:
            return sorted(p for p in folder.iterdir() if p.is_dir() and not Leftovers().passes(p.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise BadInput(f"{shown(folder)}: cannot be read: {error.strerror}") from None

    def images_in(self, folder: Path) -> list[str]:
        """Names of the image files directly in a folder, by suffix."""
        try:
            with os.scandir(folder) as entries:
                names = [
                    e.name for e in entries if is_image_name(e.name) and not e.name.startswith(".") and not e.is_dir()
                ]
        except OSError:
            return []
        return sorted(names)

    def has_images(self, folder: Path) -> bool:
        """Whether a folder has an image file at any depth, by suffix."""
        return any(is_image_name(name) and name[0] != "." for _, _, names in os.walk(folder) for name in names)

    def files(self, folder: Path) -> list[str]:
        """All files below a folder, in the order of their paths."""
        return sorted(self._files(str(folder), ()))

    def loose(self, folder: Path) -> list[str]:
        """The images directly in a folder, in the order of their names."""
        self._checked(str(folder))
        with os.scandir(folder) as entries:
            others = [e.name for e in entries if not is_image_name(e.name) and not self.leftovers.passes(e.name)]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        self.notes += [f"not used: {', '.join(map(shown, sorted(others)[:3]))}{more} (no image)"] if others else []
        return [self._file(str(folder / name)) for name in self.images_in(folder)]

    def _files(self, folder: str, above: tuple[str, ...]) -> Iterator[str]:
        here = self._checked(folder)
        if here in above:
            raise BadInput(f"{shown(folder)}: a link to a folder that contains it")
        try:
            entries = [entry for entry in os.scandir(folder) if not self.leftovers.passes(entry.name)]
        except OSError as error:
            raise BadInput(f"{shown(folder)}: cannot be read: {error.strerror}") from None
        for entry in entries:
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from self._files(entry.path, (*above, here))
            elif entry.is_symlink() or not entry.is_file():
                yield self._file(entry.path)
            else:
                yield entry.path

    def _file(self, path: str) -> str:
        link = os.path.islink(path)
        if link:
            self._checked(path)
        # A broken link is left to the decoder, which treats it as a damaged image.
        if (os.path.exists(path) and not os.path.isfile(path)) if link else not os.path.isfile(path):
            raise BadInput(f"{shown(path)}: neither a file nor a folder")
        return path

    def _checked(self, path: str) -> str:
        target = os.path.realpath(path)
        if target != self._inside and not target.startswith(self._inside.rstrip("/") + "/"):
            raise BadInput(f"{shown(path)}: a link that leads outside {shown(self._inside)}; copy what it names")
        return target


@dataclass(frozen=True)
class Splits:
    """Folders of the splits."""

    train: Path
    held: Path | None
    notes: list[str]
    """Folders that are not used, one line each."""


def splits_of(tree: Tree, root: Path) -> Splits | None:
    """The splits of a folder; None if its sub-folders are classes.

    A class may be called `train`. So a folder with the name of a split counts as one only if some folder with such a
    name holds folders, or if all folders have such names.

    Raises:
        BadInput: there is no training split, or several; or images would be ignored.
    """
    folders = tree.folders(root)
    named = {folder: found for folder in folders if (found := split_name(folder.name)) is not None}
    holding = {folder for folder in named if tree.folders(folder) or (folder / LABELS).is_file()}
    trains = [folder for folder, found in named.items() if found.split == TRAIN]
    if not holding and (len(named) < len(folders) or not trains):
        return None
    if holding:
        trains = [folder for folder in trains if folder in holding]
    if not trains:
        first = min(holding, key=lambda folder: named[folder].rank)
        raise BadInput(f"{shown(root)}: has {first.name}/ but no train/; name the folder that holds the classes")
    if len(trains) > 1:
        names = " and ".join(f"{shown(folder.name)}/" for folder in trains)
        raise BadInput(
            f"{shown(root)}: {names} are both training splits; point data.path at one of them, or move one away"
        )
    (train,) = trains
    prefix = named[train].prefix
    others = {folder: found for folder, found in named.items() if found.split != TRAIN and found.prefix == prefix}
    notes = _check_other_folders(tree, root, [f for f in folders if f != train and f not in others], train)
    held: Path | None = None
    for folder in sorted(others, key=lambda folder: (others[folder].rank, folder.name)):
        if held is not None:
            notes.append(f"not used: {shown(folder.name)}/")
        elif bool(holding) == (folder in holding):
            held = folder
        else:
            notes.append(_without_classes(tree, folder, others[folder], train))
    return Splits(train, held, notes)


def _check_other_folders(tree: Tree, root: Path, folders: list[Path], train: Path) -> list[str]:
    """Notes on folders that are not splits; raises BadInput for images that would be ignored."""
    notes = []
    for folder in folders:
        pictures = tree.has_images(folder)
        if pictures and not any(word in folder.name.lower() for word in ("pred", "unlabel")):
            raise BadInput(
                f"{shown(folder)}: holds images next to {shown(train.name)}/, and is no split (train, val, test); move it away, or point data.path at {shown(train)}"
            )
        notes.append(f"not used: {shown(folder.name)}/" + (" (it has no labels)" if pictures else " (no images)"))
    if tree.images_in(root):
        raise BadInput(f"{shown(root / tree.images_in(root)[0])}: an image next to {shown(train.name)}/; move it away")
    return notes


def _without_classes(tree: Tree, folder: Path, found: SplitName, train: Path) -> str:
    """A note on a test split without class folders; a validation split without them is refused."""
    count = len(tree.images_in(folder))
    if found.split == "test" and count:
        return f"not used: {shown(folder.name)}/ ({count} images without class folders)"
    what = f"holds {count} images but no class folders" if count else "holds no images"
    raise BadInput(
        f"{shown(folder)}: {what}; sort them into class folders as in {shown(train.name)}/, or move it away to hold out a fraction of {shown(train.name)}/ (data.holdout)"
    )


def descended(tree: Tree, folder: Path) -> Path:
    """The innermost folder of a split: archives often nest it, as in `seg_train/seg_train`."""
    found = split_name(folder.name)
    inner = tree.folders(folder)
    while len(inner) == 1 and not tree.images_in(folder) and (name := split_name(inner[0].name)) is not None:
        if found is None or name.split != found.split:
            break
        folder, inner = inner[0], tree.folders(inner[0])
    return folder


def check_level(tree: Tree, base: Path, named: bool) -> None:
    """Check that the folders directly below `base` are the classes.

    Raises:
        BadInput: the classes are deeper, or images lie next to class folders. The message says which path to give.
    """
    folders = tree.folders(base)
    for folder in folders:
        splits = {found.split for inner in tree.folders(folder) if (found := split_name(inner.name)) is not None}
        if TRAIN in splits and len(splits) > 1:
            raise BadInput(
                f"{shown(base)}: {shown(folder.name)}/ holds splits of its own; point data.path at {shown(folder)}"
            )
    holding = [folder for folder in folders if tree.has_images(folder)]
    if len(holding) == 1 and _deeper(tree, holding[0]):
        point = holding[0]
        while len(inner := [f for f in tree.folders(point) if tree.has_images(f)]) == 1 and _deeper(tree, inner[0]):
            point = inner[0]
        inside = [shown(folder.name) for folder in tree.folders(point)]
        listed = ", ".join(inside[:3]) + (f" and {len(inside) - 3} more" if len(inside) > 3 else "")
        what = f"point data.path at {shown(point)}" if named else f"move the folders of {shown(point)} up"
        raise BadInput(
            f"{shown(base)}: holds one folder with images, {shown(holding[0].name)}/, whose folders look like the classes ({listed}); {what}"
        )
    if folders and (images := tree.images_in(base)):
        raise BadInput(f"{shown(base / images[0])}: an image next to class folders; move it into one, or away")


def _deeper(tree: Tree, folder: Path) -> bool:
    """Whether all images of a folder are in sub-folders."""
    return not tree.images_in(folder) and any(tree.has_images(inner) for inner in tree.folders(folder))
