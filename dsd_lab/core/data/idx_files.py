"""Finds idx files by name: those of MNIST, Kaggle, EMNIST and QMNIST, and torchvision's folder `raw`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsd_lab.core.data.layout import TRAIN, split_name
from dsd_lab.core.data.records import shown
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, read_plain

_NAME = re.compile(
    r"(?:(?P<set>.+?)-)?(?P<split>train|t10k|test)[-_.](?P<what>images|labels)[-_.]idx(?P<dimensions>\d)[-_.](?P<type>ubyte|int)(?P<gz>\.gz)?",
    re.IGNORECASE,
)
_MAPPING = 2**20
"""Bytes of the file that names characters."""
_DEPTH = 3
"""Depth of the search for files in sub-folders, so that a message can name the right folder."""


@dataclass(frozen=True)
class IdxSet:
    """The files of one data set."""

    name: str
    """Prefix of the files, such as `emnist-letters`; empty for MNIST's own names."""
    files: dict[tuple[str, str], Path]
    """By split (`train`, `test`) and content (`images`, `labels`)."""

    @property
    def transposed(self) -> bool:
        """Whether rows and columns are swapped, as in EMNIST, whose files are in Matlab's order."""
        return self.name.lower().startswith("emnist")


def idx_set(root: Path) -> IdxSet:
    """The data set in a folder, or in its sub-folder `raw/` (torchvision).

    Raises:
        BadInput: there is none, or several; the message names them.
    """
    for folder in (root, root / "raw"):
        found = _sets(folder)
        if len(found) > 1:
            names = ", ".join(shown(name or "MNIST's own names") for name in sorted(found))
            raise BadInput(
                f"{shown(folder)}: holds the files of several data sets ({names}); put the four files of one, or links to them, into a folder of its own"
            )
        for name, files in found.items():
            return IdxSet(name, files)
    below = [shown(folder) for folder in _below(root, _DEPTH)]
    if below:
        raise BadInput(f"{shown(root)}: the idx files are deeper; point data.path at {' or '.join(below[:5])}")
    return IdxSet("", {})


def class_names(root: IdxSet) -> dict[int, str]:
    """Label -> character, from EMNIST's `NAME-mapping.txt`; empty without that file."""
    names: dict[int, str] = {}
    for path in {path.parent for path in root.files.values()}:
        mapping = path / f"{root.name}-mapping.txt"
        if root.name and mapping.is_file():
            try:
                text = read_plain(mapping, _MAPPING).decode(errors="replace")
            except BadFile as error:
                raise BadInput(f"{shown(mapping)}: {error.strerror}") from None
            for line in text.splitlines():
                numbers = line.split()
                if len(numbers) > 1 and all(n.isdecimal() and len(n) < 8 and int(n) < 0x110000 for n in numbers):
                    names[int(numbers[0])] = shown(chr(int(numbers[1])))
    return names


def _sets(folder: Path) -> dict[str, dict[tuple[str, str], Path]]:
    """Files by data set, split and content; an unpacked file is preferred to a `.gz`."""
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted(_named(folder), key=lambda path: (path.suffix == ".gz", path.name)):
        found = _NAME.fullmatch(path.name)
        split = split_name(found["split"]) if found else None
        if found and split:
            files = sets.setdefault((found["set"] or "").lower(), {})
            files.setdefault((TRAIN if split.split == TRAIN else "test", found["what"].lower()), path)
    return sets


def _named(folder: Path) -> Iterator[Path]:
    """The idx files of a folder; Kaggle's archives unpack each into a folder of the same name."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if _NAME.fullmatch(path.name):
            inner = path / path.name if path.is_dir() else path
            if inner.is_file():
                yield inner


def _below(folder: Path, depth: int) -> list[Path]:
    if not depth or not folder.is_dir():
        return []
    found = []
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found += [inner] if _sets(inner) else _below(inner, depth - 1)
    return found
