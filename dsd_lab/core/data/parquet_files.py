"""Assigns parquet and tar files to splits: by file name, by folder, or from the root of a repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsd_lab.core.data.layout import HELD_OUT, TRAIN, check_shards, group_of, split_name
from dsd_lab.core.data.records import shown
from dsd_lab.errors import BadInput

_DEPTH = 3
"""Depth of the search for files in sub-folders; a repository has `CONFIG/SPLIT/0000.parquet`."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, and its name in messages, such as `valid-*.parquet` or `test/`."""

    name: str
    split: str
    files: list[Path]


def split_files(root: Path, kind: str = "parquet") -> tuple[SplitFiles, list[SplitFiles], list[str]]:
    """The training files, the candidates for held-out images in order of preference, and notes on unused files.

    Args:
        root: folder of the files, or of one that holds them.
        kind: suffix of the files.

    Raises:
        BadInput: there are no training files, several sets of them, or shards are missing.
    """
    folder, groups = _resolved(root, kind)
    named = {name: split_name(name.rstrip("/")) for name in groups}
    trains = [name for name, found in named.items() if found and found.split == TRAIN]
    if any(named[name].prefix == "" for name in trains):  # type: ignore[union-attr]
        trains = [name for name in trains if named[name].prefix == ""]  # type: ignore[union-attr]
    trains = trains or _longer(groups, TRAIN)
    if len(trains) > 1:
        raise BadInput(
            f"{shown(folder)}: {_listed(trains, kind)} are all training files; move all but one set into another folder"
        )
    (train,) = trains
    prefix = named[train].prefix if named[train] else ""  # type: ignore[union-attr]
    if prefix == "partial":
        raise BadInput(f"{shown(folder / train)}: the first part of a training split; download the whole one")
    chosen = [SplitFiles(_called(train, kind), TRAIN, groups[train])]
    for split in HELD_OUT:
        names = [n for n, found in named.items() if found and found.split == split and found.prefix == prefix]
        names = names or [n for n in _longer(groups, split) if named[n] is None]
        if len(names) > 1:
            raise BadInput(f"{shown(folder)}: {_listed(names, kind)} could all be held out; move all but one set away")
        chosen += [SplitFiles(_called(name, kind), split, groups[name]) for name in names]
    for part in chosen:
        check_shards(part.files)
    taken = {part.name for part in chosen}
    called = {name: _called(name, kind) for name in groups}
    notes = [f"not used: {shown(name)}" for name in called.values() if name not in taken]
    return chosen[0], chosen[1:], notes


def holds_training(root: Path) -> bool:
    """Whether a folder or a sub-folder has parquet files of a training split."""
    return bool(_below(root, _DEPTH, "parquet"))


def _resolved(root: Path, kind: str) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of the training files, and all its files by group."""
    found = _below(root, _DEPTH, kind)
    if len(found) > 1:
        places = ", ".join(shown(folder) for folder, _ in found[:5])
        raise BadInput(f"{shown(root)}: holds several data sets; point data.path at one of them: {places}")
    if not found:
        there = sorted(path.name for path in root.glob(f"*.{kind}")) if root.is_dir() else []
        holds = f"; it holds {', '.join(map(shown, there[:5]))}" if there else ""
        raise BadInput(
            f"{shown(root)}: no train*.{kind} in this folder, nor train/*.{kind} or data/train*.{kind}{holds}"
        )
    return found[0]


def _below(folder: Path, depth: int, kind: str) -> list[tuple[Path, dict[str, list[Path]]]]:
    groups = _groups(folder, kind)
    if any((found := split_name(name.rstrip("/"))) and found.split == TRAIN for name in groups) or _longer(
        groups, TRAIN
    ):
        return [(folder, groups)]
    return [found for inner in _folders(folder) for found in _below(inner, depth - 1, kind)] if depth else []


def _groups(folder: Path, kind: str) -> dict[str, list[Path]]:
    """Files by group: `NAME` for files in the folder, `NAME/` for a sub-folder with the name of a split."""
    groups: dict[str, list[Path]] = {}
    for path in _files(folder, kind):
        groups.setdefault(group_of(path.stem), []).append(path)
    for inner in _folders(folder):
        if split_name(inner.name) and (files := _files(inner, kind)):
            groups[f"{inner.name}/"] = files
    return groups


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"*.{kind}") if not p.name.startswith("."))


def _longer(groups: dict[str, list[Path]], word: str) -> list[str]:
    """Names that begin with a word, such as `train_full`; used where no name equals the word."""
    return [name for name in groups if name.lower().startswith((f"{word}-", f"{word}_", f"{word}."))]


def _called(name: str, kind: str) -> str:
    return name if name.endswith("/") else f"{name}*.{kind}"


def _listed(names: list[str], kind: str) -> str:
    return " and ".join(shown(_called(name, kind)) for name in names[:4])
