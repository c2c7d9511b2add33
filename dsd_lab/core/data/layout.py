"""Names used by downloads: of splits, classes, shards, and files left by file managers. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from pathlib import Path

from dsd_lab.core.data.records import shown
from dsd_lab.errors import BadInput

TRAIN = "train"
_WORDS = {"train": TRAIN, "training": TRAIN, "val": "val", "valid": "valid", "validation": "validation", "dev": "dev"}
_WORDS |= {"test": "test", "testing": "test", "t10k": "test"}
HELD_OUT = ("val", "valid", "validation", "dev", "test")
"""Held-out splits in order of preference. `test` is last: the test split of ImageNet and others has no labels."""
_SPLIT = re.compile(
    rf"(?:(?P<prefix>.+?)[-_. ])?(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})"
    r"(?:[-_. ]?(?:set|images|imgs|data|split|\d{4}))?",
    re.IGNORECASE,
)

_SUFFIXES = "apng avif bmp dib gif heic jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
_LEFTOVERS = {
    "@eadir": "thumbnails of Synology",
    "thumbs.db": "thumbnails of Windows",
    "ehthumbs.db": "thumbnails of Windows",
    "desktop.ini": "folder settings of Windows",
    ".ds_store": "folder settings of macOS",
    "__macosx": "resource forks of macOS",
    "$recycle.bin": "deleted files of Windows",
    "system volume information": "system files of Windows",
    "lost+found": "recovered files of the file system",
}


@dataclass(frozen=True)
class SplitName:
    """A split's name and its prefix: `seg_train` is `train` with the prefix `seg`."""

    split: str
    prefix: str

    @property
    def rank(self) -> int:
        """Place in the order of preference: training first, then `HELD_OUT`."""
        return (TRAIN, *HELD_OUT).index(self.split)


def split_name(name: str) -> SplitName | None:
    """The split that a name stands for, ignoring case; None for any other name."""
    found = _SPLIT.fullmatch(name.strip())
    return None if found is None else SplitName(_WORDS[found["word"].lower()], (found["prefix"] or "").lower())


def class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their class numbers: numeric names by value, others alphabetically."""
    found = sorted(names)
    return sorted(found, key=_value) if all(name.isdecimal() for name in found) else found


def _value(name: str) -> tuple[int, list[int]]:
    """The order of numbers. `int` refuses a name of more than 4,300 digits."""
    digits = list(dropwhile(lambda digit: digit == 0, map(int, name)))
    return len(digits), digits


@dataclass
class Leftovers:
    """Files that file managers and archives left among the images: ignored and counted."""

    counts: Counter[str] = field(default_factory=Counter)

    def passes(self, name: str) -> bool:
        """Whether a name is ignored: a hidden file, or a known leftover, which is counted."""
        known = "resource forks of macOS" if name.startswith("._") else _LEFTOVERS.get(name.lower())
        if known is not None:
            self.counts[f"{'._*' if name.startswith('._') else name} ({known})"] += 1
        return known is not None or name.startswith(".")

    def notes(self) -> list[str]:
        """One line for each kind."""
        return [f"passed over: {count} {shown(name)}" for name, count in sorted(self.counts.items())]


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return Path(name).suffix[1:].lower() in _SUFFIXES.split()


# -- Shards ------------------------------------------------------------------------------------------

_SHARD = re.compile(r"(?P<group>.+?)(?:[-_.]?(?P<index>\d+)(?:-of-(?P<count>\d+))?)?(?:-[0-9a-f]{16})?")


def group_of(stem: str) -> str:
    """The group that a file belongs to: `train-00000-of-00002` and `train-00001-of-00002` are `train`."""
    found = _SHARD.fullmatch(stem)
    return found["group"] if found else stem


def check_shards(files: list[Path]) -> None:
    """Check that no shard of a group is missing. Shards are named `...-of-N`, or by numbers from 0.

    Raises:
        BadInput: shards are missing, repeated or from two different sets; the message names one.
    """
    indices: dict[int | None, dict[int, Path]] = {}
    for path in files:
        found, alone = _SHARD.fullmatch(path.stem), path.stem.isdecimal()
        if not alone and (found is None or found["count"] is None):
            continue
        index, count = (int(path.stem), None) if alone or found is None else (int(found["index"]), int(found["count"]))
        same = indices.setdefault(count, {})
        if index in same:
            raise BadInput(f"{shown(path)} and {shown(same[index].name)}: the same shard twice; remove one of the two")
        same[index] = path
    if len(indices) > 1:
        first, second = (next(iter(same.values())) for same in list(indices.values())[:2])
        raise BadInput(f"{shown(first)} and {shown(second.name)}: shards of two different sets; remove one set")
    for count, same in indices.items():
        total = max(same) + 1 if count is None else count
        missing = list(islice((index for index in range(total) if index not in same), 6))
        if missing or len(same) > total:
            one = shown(next(iter(same.values())))
            lacking = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
            raise BadInput(
                f"{one}: {len(same)} of {total} shards are here; number {lacking} is missing, download it too"
            )
