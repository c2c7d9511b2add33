"""Find and delete what a home folder no longer needs: nothing that a recorded sweep needs or a process uses."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import size_of
from dsd_lab.files.below import folder_below, remove_below, remove_in
from dsd_lab.files.bounded import open_plain
from dsd_lab.files.locks import is_held, locked
from dsd_lab.files.sha256 import sha256_in
from dsd_lab.home.cached_garbage import (
    interrupted_samples,
    killed_bench_folders,
    unused_counts,
    unused_extractors,
    unused_indexes,
    unused_packs,
)
from dsd_lab.home.copied_garbage import unnamed_reproductions, unused_plugins
from dsd_lab.home.home import Home
from dsd_lab.home.importing import LOCK, STAGING
from dsd_lab.home.names import SWEEP_ENTRIES, is_trial_id
from dsd_lab.home.ownership import (
    Freeable,
    below,
    delete_trial,
    foreign_entries,
    is_own_folder,
    is_trial,
    not_where_refused,
    require_home,
    trial_folders,
    was_trial,
)
from dsd_lab.home.revisions import ever_named
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.home.trial_records import CheckpointManifest

_REMOVING = ".removing-"
"""A trial is renamed before it is deleted, so that an interrupted deletion does not leave half a trial."""
_STEP, _DAMAGED = re.compile(r"step-\d{9}"), re.compile(r"damaged-step-\d{9}(-\d+)?")
_RAY = re.compile(r"session_\d{4}(-\d\d){2}_(\d\d-){2}\d\d_\d+_\d+|tune")


def garbage(home: Home, code: str) -> list[Freeable]:
    """Everything that no recorded sweep needs and that dsd-lab provably wrote.

    Args:
        home: where to look.
        code: hash of the present training code; counts from other code are unused.

    Raises:
        BadInput: the folder is not a home.
    """
    require_home(home)
    named = named_trials(home)
    return [
        *_unnamed_trials(home, named),
        *_leftovers(home),
        *_killed_imports(home),
        *_checkpoints(home, named),
        *unused_counts(home, code),
        *unused_extractors(home, named),
        *unused_packs(home, named),
        *unused_indexes(home, named),
        *killed_bench_folders(home),
        *interrupted_samples(home),
        *_copies(home, named),
        *_ray_logs(home),
    ]


def named_trials(home: Home, but: str | None = None) -> set[str]:
    """Ids of the trials that recorded sweeps name or ever named.

    Args:
        home: the home folder.
        but: key of a sweep to leave out.
    """
    now = {key: manifest.named for key, manifest in home.manifests().items()}
    named = [*now.items(), *ever_named(home.root).items()]
    return {trial for key, trials in named if key != but for trial in trials}


def sweep_trials(home: Home, key: str) -> list[Freeable]:
    """Trials that this sweep names and no other recorded sweep does."""
    own = (home.manifests()[key].named | ever_named(home.root).get(key, set())) - named_trials(home, but=key)
    return [_trial(home, home.trial(p.name), key, "no other sweep names it") for p in _trials(home) if p.name in own]


def forget_sweep(home: Home, key: str, trials: list[Freeable]) -> list[Freeable]:
    """Delete trials, then the record of their sweep. Returns the trials in use, which stay.

    Raises:
        BadInput: the sweep is running, or its folder is reached through a link.
    """
    folder = home.sweep_folder(key)
    if below(home, "sweeps", key) is None:
        raise BadInput(f"{folder}: is reached through a link; nothing is deleted through links: remove it yourself")
    with locked(folder / "lock", wait=False) as held:
        if not held:
            raise BadInput(f"sweep {key!r} is running in {home.root}; stop it first")
        left = [trial for trial in trials if not trial.free()]
        with folder_below(home.root, ("sweeps",)) as sweeps:
            with folder_below(home.root, ("sweeps", key)) as handle:
                for name in SWEEP_ENTRIES:  # the record first: without it the sweep is gone
                    remove_in(handle, name)
            with contextlib.suppress(OSError):  # holds other files
                os.rmdir(key, dir_fd=sweeps)
    return left


def held_trials(home: Home) -> list[str]:
    """Ids of trials that a process holds."""
    return [path.name for path in trial_folders(home) if home.trial(path.name).is_locked()]


def foreign_trials(home: Home) -> dict[str, list[str]]:
    """Foreign file names in trial folders, by trial id. Such a folder is never deleted."""
    found = {path.name: foreign_entries(path) for path in trial_folders(home) if is_trial(path, path.name)}
    return {trial: names for trial, names in found.items() if names}


def linked_folders(home: Home) -> list[str]:
    """Folders of the home that are links. Nothing is deleted through them."""
    names = (
        "trials",
        "sweeps",
        "ray",
        "cache",
        "plugins",
        "reproductions",
        *(f"cache/{name}" for name in ("extractors", "statistics", "data", "bench", "drawn")),
    )
    return [name for name in names if (home.root / name).is_symlink()]


# -- Kinds -------------------------------------------------------------------------------------------


def _trials(home: Home) -> list[Path]:
    """Folders of trials without foreign files."""
    return [path for path in trial_folders(home) if is_trial(path, path.name) and not foreign_entries(path)]


def _unnamed_trials(home: Home, named: set[str]) -> Iterator[Freeable]:
    for path in _trials(home):
        folder = home.trial(path.name)
        if path.name not in named and not folder.is_locked():
            yield _trial(home, folder, None, "no recorded sweep names it")


def _leftovers(home: Home) -> Iterator[Freeable]:
    trials = below(home, "trials")
    for path in sorted(trials.glob(f"{_REMOVING}*")) if trials is not None else ():
        if _is_removing(path) and not is_held(path / "lock"):
            yield Freeable(
                "trial", path, "its deletion was interrupted", size_of(path), partial(delete_trial, home.root, path)
            )


def _killed_imports(home: Home) -> Iterator[Freeable]:
    for path in sorted(home.root.glob(f"{STAGING}*")):
        if is_own_folder(path) and (path / LOCK).is_file() and not is_held(path / LOCK):
            free = partial(remove_below, home.root, path)
            yield Freeable("import", path, "left by an import that was killed", size_of(path), free)


def _is_removing(path: Path) -> bool:
    trial_id = path.name.removeprefix(_REMOVING)
    ours = is_trial_id(trial_id) and is_own_folder(path)
    return ours and was_trial(path, trial_id) and not foreign_entries(path)


def _checkpoints(home: Home, named: set[str]) -> Iterator[Freeable]:
    for path in trial_folders(home):
        folder = home.trial(path.name)
        if (
            path.name not in named
            or not is_trial(path, path.name)
            or folder.is_locked()
            or not is_own_folder(folder.checkpoints)
        ):
            continue
        found = [(p, "damaged") for p in sorted(folder.checkpoints.iterdir()) if _DAMAGED.fullmatch(p.name)]
        if folder.state() in ENDED:
            found += [(p, "superseded; the trial has ended") for p in _superseded(folder.checkpoints)]
        for checkpoint, why in found:
            if is_own_folder(checkpoint):
                free = partial(_free_held, home, folder, checkpoint)
                yield Freeable("checkpoint", checkpoint, why, size_of(checkpoint), free)


def _superseded(checkpoints: Path) -> list[Path]:
    """Checkpoints older than the newest valid one; none where no checkpoint is valid."""
    steps = _steps(checkpoints)
    newest = whole_checkpoint(checkpoints) if len(steps) > 1 else None
    return [] if newest is None else steps[steps.index(newest) + 1 :]


def whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest valid checkpoint. Renames nothing, unlike loading."""
    return next((path for path in _steps(checkpoints) if _is_whole(path)), None)


def _steps(checkpoints: Path) -> list[Path]:
    return sorted((p for p in checkpoints.glob("step-*") if _STEP.fullmatch(p.name) and p.is_dir()), reverse=True)


def _is_whole(path: Path) -> bool:
    """Verify a checkpoint without torch, which would read the tensors into memory."""
    manifest = CheckpointManifest.known(path / "manifest.json")
    if manifest is None or not manifest.intact:
        return False
    try:
        with open_plain(path / "tensors.safetensors") as file:
            digest = sha256_in(file)
            return manifest.is_of(file.tell(), digest)
    except OSError:
        return False


def _copies(home: Home, named: set[str]) -> Iterator[Freeable]:
    yield from unnamed_reproductions(home, named)
    if not _sweep_runs(home) and not held_trials(home):
        yield from unused_plugins(home, named)


def _ray_logs(home: Home) -> Iterator[Freeable]:
    ray = below(home, "ray")
    if ray is None or _sweep_runs(home):
        return  # Ray of a running sweep keeps its sockets there
    users = [path / "ray" for path in sorted(ray.glob("u*")) if is_own_folder(path) and is_own_folder(path / "ray")]
    for path in (path for folder in (ray, *users) for path in sorted(folder.iterdir())):
        latest = path.name == "session_latest" and path.is_symlink()
        if latest or (_RAY.fullmatch(path.name) and is_own_folder(path)):
            yield Freeable("ray", path, "logs of an ended Ray session", size_of(path), partial(_free_log, home, path))


def _sweep_runs(home: Home) -> bool:
    return any(is_held(path) for path in home.root.glob("sweeps/*/lock"))


# -- Freeing -----------------------------------------------------------------------------------------


def _trial(home: Home, folder: TrialFolder, forgetting: str | None, why: str) -> Freeable:
    free = partial(_free_trial, home, folder, forgetting)
    return Freeable("trial", folder.root, why, size_of(folder.root), free)


@not_where_refused
def _free_trial(home: Home, folder: TrialFolder, forgetting: str | None) -> bool:
    if below(home, "trials") is None:  # replaced by a link
        return False
    if not is_own_folder(folder.root):
        return True
    with folder.lock() as held:
        # A sweep may have started, or somebody may have added files, since the search.
        if not held or folder.id in named_trials(home, but=forgetting) or foreign_entries(folder.root):
            return False
        going = folder.root.with_name(f"{_REMOVING}{folder.id}")
        if going.is_symlink() or (going.exists() and not (_is_removing(going) and delete_trial(home.root, going))):
            return False
        try:
            with folder_below(home.root, ("trials",)) as trials:
                os.rename(folder.id, going.name, src_dir_fd=trials, dst_dir_fd=trials)
        except OSError:  # `trials` was replaced by a link
            return False
        return delete_trial(home.root, going)


@not_where_refused
def _free_held(home: Home, folder: TrialFolder, path: Path) -> bool:
    with folder.lock() as held:
        return held and remove_below(home.root, path)


def _free_log(home: Home, path: Path) -> bool:
    return not _sweep_runs(home) and remove_below(home.root, path)  # one may have started since the search
