"""What in a home folder is provably ours: `gc` and `rm` delete nothing else, and never through a link.

A home is recognised by its mark file, or, from versions before marks, by a trial or sweep with valid records.
A trial is recognised by the records in its folder, a cache file by its name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from dsd_lab.errors import BadInput
from dsd_lab.files.below import folder_below, remove_below, remove_in
from dsd_lab.files.bounded import BadFile
from dsd_lab.home.home import Home
from dsd_lab.home.mark import MARK, home_id, mark_home
from dsd_lab.home.names import TRIAL_ENTRIES, is_trial_id
from dsd_lab.home.trial_records import Status, TrialRecord

P = ParamSpec("P")


@dataclass(frozen=True)
class Freeable:
    """Something that can be deleted, and how."""

    kind: str
    path: Path
    why: str
    bytes: int
    free: Callable[[], bool]
    """Deletes it. Returns False if a process has started to use it meanwhile."""

    def row(self) -> dict[str, Any]:
        """The row that `--json` prints."""
        return {"kind": self.kind, "path": str(self.path), "why": self.why, "bytes": self.bytes}


def not_where_refused(free: Callable[P, bool]) -> Callable[P, bool]:
    """A way to free that leaves alone what has a link or a pipe in the place of its lock."""

    @functools.wraps(free)
    def tried(*arguments: P.args, **named: P.kwargs) -> bool:
        try:
            return free(*arguments, **named)
        except BadFile:
            return False

    return tried


_RECORDS = {"trial.json", "status.json", "lock"}


def require_home(home: Home) -> None:
    """Refuse to delete in a folder that is not a home. An empty or missing folder has nothing to delete.

    Raises:
        BadInput: the folder holds files but no sign that dsd-lab made it.
    """
    if not home.root.is_dir() or not any(home.root.iterdir()) or home_id(home.root) is not None:
        return
    if _has_records(home):
        return
    raise BadInput(
        f"--home {home.root}: is not a dsd-lab home: it has no {MARK} and no trial or sweep with readable records; nothing was deleted"
    )


def unseen(home: Home, known: str) -> str | None:
    """Why this machine may not work in a home that another machine named: it lies on a disk of its own, or nowhere.

    A home that has lost its mark while a sweep runs is recognised by its records, and is marked again.

    Args:
        home: where the other machine has it.
        known: its id.
    """
    found = home_id(home.root)
    if found is None:
        with contextlib.suppress(OSError, BadInput):  # what is damaged proves nothing
            found = mark_home(home.root, known) if _has_records(home) else None
    if found == known:
        return None
    return (
        f"machine {socket.gethostname()} does not see the home folder {home.root}, which must lie on storage that all "
        "machines of the cluster share; nothing was trained there"
    )


def _has_records(home: Home) -> bool:
    """Whether a trial or a sweep with readable records is there.

    Raises:
        BadInput: the record of a sweep is damaged, and no trial has readable ones.
    """
    return any(is_trial(path, path.name) for path in trial_folders(home)) or bool(home.manifests())


def below(home: Home, *names: str) -> Path | None:
    """A folder below the home, reached without a link; None where there is none."""
    path = home.root
    for name in names:
        path = path / name
        if path.is_symlink() or not path.is_dir():
            return None
    return path


def trial_folders(home: Home) -> Iterator[Path]:
    """Folders below `trials` with names of trials, without following links."""
    trials = below(home, "trials")
    for path in sorted(trials.iterdir()) if trials is not None else ():
        if is_trial_id(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def is_trial(folder: Path, trial_id: str) -> bool:
    """Whether `trial.json` (by its id) or `status.json` (by its state) shows that the folder is this trial's."""
    path = folder / "trial.json"
    try:
        described = None if path.is_symlink() else TrialRecord.read(path)
    except (BadInput, OSError):  # a foreign file of this name
        return False
    if described is not None:
        return described.id == trial_id
    status = Status.known(folder / "status.json")
    return status is not None and status.state != "pending"


def refuse_links(folders: Iterable[Path]) -> None:
    """Refuse to write, or to copy, where a link leads out of the folder of a sweep or of a trial.

    A home may have come with a clone or an archive. Links above these folders stand for a disk that somebody chose.

    Raises:
        BadInput: one of the folders is a link, or holds one.
    """
    for folder in folders:
        places = (os.path.join(at, name) for at, *inside in os.walk(folder) for names in inside for name in names)
        for place in (str(folder), *places):
            if os.path.islink(place):
                raise BadInput(
                    f"{place}: is a link; in the folders of trials none is followed: remove it, or put what it leads to in its place"
                )


def is_own_folder(path: Path) -> bool:
    """Whether a path is a folder and not a link, which could lead anywhere."""
    return path.is_dir() and not path.is_symlink()


def foreign_entries(folder: Path) -> list[str]:
    """Names in a trial's folder that dsd-lab does not write."""
    # Killed atomic writes leave `.name.xxxxxxxx` behind.
    names = [path.name for path in folder.iterdir()]
    known = re.compile(rf"\.({'|'.join(map(re.escape, sorted(TRIAL_ENTRIES)))})\.[a-z0-9_]{{8}}")
    return sorted(name for name in names if name not in TRIAL_ENTRIES and not known.fullmatch(name))


def delete_trial(root: Path, folder: Path) -> bool:
    """Delete a trial's folder, its records last, so that an interrupted deletion can still be attributed.

    Args:
        root: the home folder.
        folder: below its `trials`.

    Returns:
        Whether it is gone; False where it is reached through a link.
    """
    try:
        with folder_below(root, folder.relative_to(root).parts) as handle:
            for name in os.listdir(handle):
                if name not in _RECORDS:
                    remove_in(handle, name)
    except OSError:  # gone, or replaced by a link
        return not os.path.lexists(folder)
    return remove_below(root, folder)


def was_trial(folder: Path, trial_id: str) -> bool:
    """Whether a folder under deletion was this trial's: its records say so, or nothing else is left in it."""
    return is_trial(folder, trial_id) or {path.name for path in folder.iterdir()} <= _RECORDS
