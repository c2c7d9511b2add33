"""Unused copies in the home folder: sources of plug-ins, and trials retrained by `reproduce`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from dsd_lab.files.atomic import size_of
from dsd_lab.files.below import remove_below
from dsd_lab.home.home import Home
from dsd_lab.home.mark import MARK, home_id
from dsd_lab.home.names import TRIAL_ID
from dsd_lab.home.ownership import (
    Freeable,
    below,
    foreign_entries,
    is_own_folder,
    is_trial,
    not_where_refused,
    trial_folders,
)
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.specs.plugin_source import source_digest

_DIGEST = re.compile(r"[0-9a-f]{12}")
_REPRODUCTION = re.compile(rf"({TRIAL_ID})-\d+")
_OF_REPRODUCTION = {MARK, "trials", "cache", "plugins"}
"""Entries of a folder of `reproduce`; `cache` links to the home's cache."""


def unused_plugins(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Plug-in sources that no recorded trial was trained with. A source is ours if its folder is named by its digest.

    Args:
        home: no sweep may run in it, since a sweep keeps the sources before its trials name them.
        named: ids of the trials that recorded sweeps name.
    """
    described = [home.trial(i).description() for i in named]
    needed = {pair for d in described if d is not None for pair in _plugins_of(d)}
    for folder in _folders(home, "plugins", _DIGEST):
        if _is_source(folder) and not {(path.stem, folder.name) for path in folder.iterdir()} & needed:
            why = "source of a plug-in that no recorded trial was trained with"
            yield Freeable("plug-in", folder, why, size_of(folder), partial(remove_below, home.root, folder))


def unnamed_reproductions(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Retrained trials of `reproduce` that no recorded sweep names."""
    for folder in _folders(home, "reproductions", _REPRODUCTION):
        trial = folder.name.partition("-")[0]
        if trial not in named and _is_reproduction(folder, trial) and not Home(folder).trial(trial).is_locked():
            why = f"reproduces trial {trial}, which no recorded sweep names"
            free = partial(_free_reproduction, home.root, folder, trial)
            yield Freeable("trial", folder, why, size_of(folder), free)


def _folders(home: Home, name: str, pattern: re.Pattern[str]) -> list[Path]:
    folder = below(home, name)
    found = [] if folder is None else sorted(folder.iterdir())
    return [path for path in found if pattern.fullmatch(path.name) and is_own_folder(path)]


def _plugins_of(description: TrialRecord) -> Iterable[tuple[str, str]]:
    return description.provenance.plugins.items()


def _is_source(folder: Path) -> bool:
    """Whether a folder holds nothing but a Python file whose digest is the folder's name."""
    files = list(folder.iterdir())
    plain = len(files) == 1 and files[0].suffix == ".py" and files[0].is_file() and not files[0].is_symlink()
    return plain and source_digest(files[0]) == folder.name


def _is_reproduction(folder: Path, trial: str) -> bool:
    """Whether a folder holds only what `reproduce` writes for a trial."""
    own = Home(folder)
    if home_id(folder) is None or not {path.name for path in folder.iterdir()} <= _OF_REPRODUCTION:
        return False
    kept = all(_is_source(path) for path in (folder / "plugins").glob("*")) and _only_link(folder / "cache")
    trials = below(own, "trials")
    names = [] if trials is None else [path.name for path in trials.iterdir()]
    ours = {path.name for path in trial_folders(own) if is_trial(path, trial) and not foreign_entries(path)}
    return kept and set(names) == ours == {trial}


def _only_link(path: Path) -> bool:
    return path.is_symlink() or not path.exists()


@not_where_refused
def _free_reproduction(root: Path, folder: Path, trial: str) -> bool:
    with Home(folder).trial(trial).lock() as held:
        return held and remove_below(root, folder)
