"""What can be freed in a home folder, and freeing it: nothing that a recorded sweep needs, nothing that somebody holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files import write_json
from dsd_lab.home import ENDED, Home, TrialFolder, is_held, locked, named_by
from dsd_lab.sealing import is_intact

_GOING = ".removing-"
"""A trial is renamed before it is deleted, so that what an interruption leaves is never taken for a trial."""


@dataclass(frozen=True)
class Freeable:
    """Something that can be freed."""

    kind: str
    path: Path
    why: str
    bytes: int
    free: Callable[[], bool]
    """Frees it; False where somebody has taken hold of it meanwhile."""

    def row(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"kind": self.kind, "path": str(self.path), "why": self.why, "bytes": self.bytes}


def garbage(home: Home, code: str) -> list[Freeable]:
    """What no recorded sweep names or needs.

    Args:
        home: where to look.
        code: hash of the present training code; counts that other code made are not asked for again.
    """
    named = named_trials(home)
    return [
        *_unnamed_trials(home, named),
        *_leftovers(home),
        *_checkpoints(home, named),
        *_shapes(home, code),
        *_extractors(home, named),
        *_packs(home, named),
        *_benches(home),
        *_ray_logs(home),
    ]


def named_trials(home: Home, but: str | None = None) -> set[str]:
    """Ids of the trials that recorded sweeps name.

    Args:
        home: whose sweeps.
        but: key of a sweep that is left out.
    """
    return {trial for key, manifest in home.manifests().items() if key != but for trial in named_by(manifest)}


def sweep_trials(home: Home, key: str) -> list[Freeable]:
    """The trials that a sweep names and no other recorded sweep does."""
    own = named_by(home.manifests()[key]) - named_trials(home, but=key)
    folders = [home.trial(i) for i in sorted(own)]
    return [_trial(home, folder, key, "no other sweep names it") for folder in folders if _there(folder.root)]


def forget_sweep(home: Home, key: str, trials: list[Freeable]) -> list[Freeable]:
    """Delete trials, then the record of their sweep; returns those that somebody held, which stay.

    Raises:
        BadInput: the sweep is running.
    """
    folder = home.sweep_folder(key)
    with locked(folder / "lock", wait=False) as held:
        if not held:
            raise BadInput(f"sweep {key!r} is running in {home.root}; stop it first")
        left = [trial for trial in trials if not trial.free()]
        (folder / "manifest.json").unlink(missing_ok=True)  # from here on it is forgotten
        shutil.rmtree(folder)
    return left


def held_trials(home: Home) -> list[str]:
    """Ids of trials that somebody works on."""
    return sorted(p.name for p in home.root.glob("trials/*") if home.trial(p.name).is_locked())


# -- Kinds -------------------------------------------------------------------------------------------


def _unnamed_trials(home: Home, named: set[str]) -> Iterator[Freeable]:
    for path in sorted(home.root.glob("trials/*")):
        if path.name not in named and not path.name.startswith(".") and _there(path):
            folder = home.trial(path.name)
            if not folder.is_locked():
                yield _trial(home, folder, None, "no recorded sweep names it")


def _leftovers(home: Home) -> Iterator[Freeable]:
    for path in sorted(home.root.glob(f"trials/{_GOING}*")):
        if _there(path) and not is_held(path / "lock"):
            yield Freeable("trial", path, "its deletion was interrupted", size_of(path), partial(_remove, path))


def _checkpoints(home: Home, named: set[str]) -> Iterator[Freeable]:
    for trial_id in sorted(named):
        folder = home.trial(trial_id)
        if folder.is_locked() or folder.root.is_symlink() or folder.checkpoints.is_symlink():
            continue
        found = [(path, "damaged") for path in sorted(folder.checkpoints.glob("damaged-*"))]
        if folder.state() in ENDED:
            found += [(path, "superseded, the trial has ended") for path in _superseded(folder.checkpoints)]
        for path, why in found:
            if _there(path):
                yield Freeable("checkpoint", path, why, size_of(path), partial(_free_held, folder, path))


def _superseded(checkpoints: Path) -> list[Path]:
    """Checkpoints older than the newest that is whole; none where that cannot be told."""
    steps = _steps(checkpoints)
    newest = whole_checkpoint(checkpoints) if len(steps) > 1 else None
    return [] if newest is None else steps[steps.index(newest) + 1 :]


def whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is what was written; nothing is renamed, unlike when one is loaded."""
    return next((path for path in _steps(checkpoints) if _is_whole(path)), None)


def _steps(checkpoints: Path) -> list[Path]:
    return sorted((p for p in checkpoints.glob("step-*") if p.is_dir()), reverse=True)


def _is_whole(path: Path) -> bool:
    """Without torch, which would read the tensors into memory."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        with (path / "tensors.safetensors").open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == manifest.get("sha256")
        return same and is_intact(manifest)  # which NaN, that no manifest was written with, makes a ValueError
    except (OSError, ValueError, AttributeError):
        return False


def _shapes(home: Home, code: str) -> Iterator[Freeable]:
    path = home.cache / "shapes.json"
    try:
        known = json.loads(path.read_text())
        kept = {key: value for key, value in known.items() if json.loads(key)[0] == code}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return
    if len(kept) == len(known):
        return

    def free() -> bool:
        write_json(path, kept)
        return True

    why = f"{len(known) - len(kept)} counts of networks, made by other training code"
    yield Freeable("cache", path, why, path.stat().st_size - len(json.dumps(kept, indent=1)) - 1, free)


def _extractors(home: Home, named: set[str]) -> Iterator[Freeable]:
    files = sorted((home.cache / "extractors").glob("*.safetensors"))
    kept = sorted((home.cache / "statistics").glob("*.safetensors"))
    if not files and not kept:
        return
    from dsd_lab.evaluation.extractor import extractor_path  # imports torch: only where there is one

    described = [d for d in (home.trial(i).description() for i in named) if d is not None]
    prints = {d["data"]["fingerprint"] for d in described}
    needed = {extractor_path(home.cache, fingerprint) for fingerprint in prints}
    needed |= {path for path in kept if any(path.name.startswith(f"{p[:16]}-") for p in prints)}
    for path in (*files, *kept):
        lock = path.with_suffix(".lock")
        if path not in needed and not is_held(lock):
            why = "features of data that no recorded trial has, or made by other code"
            yield Freeable("cache", path, why, size_of(path), partial(_remove, path))


def _packs(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Rows of parquet files that were unpacked to be streamed, and what was left where that was broken off."""
    folder = home.cache / "data"
    described = [d for d in (home.trial(i).description() for i in named) if d is not None]
    streams = any(not d["data"].get("resident", True) for d in described)
    for path in sorted([*folder.glob("*.pack"), *folder.glob(".*.pack.*")]):
        whole = path.suffix == ".pack"
        lock = folder / f"{path.name.removeprefix('.').partition('.')[0]}.lock"
        if not (whole and streams) and not is_held(lock):
            why = (
                "images of parquet files that no recorded trial streams" if whole else "left where unpacking broke off"
            )
            yield Freeable("cache", path, why, size_of(path), partial(_remove, path))


def _benches(home: Home) -> Iterator[Freeable]:
    folder = home.cache / "bench"
    for path in [] if is_held(folder / "lock") else sorted(folder.glob("tmp*")):
        yield Freeable("cache", path, "left by a benchmark that was killed", size_of(path), partial(_remove, path))


def _ray_logs(home: Home) -> Iterator[Freeable]:
    if _sweep_runs(home):
        return  # a running sweep's Ray has its sockets in there
    ray = home.root / "ray"
    for path in (*sorted(ray.glob("session_*")), ray / "tune"):
        if _there(path) or (path.is_symlink() and path.name == "session_latest"):
            yield Freeable("ray", path, "logs of a Ray that has ended", size_of(path), partial(_free_log, home, path))


def _sweep_runs(home: Home) -> bool:
    return any(is_held(path) for path in home.root.glob("sweeps/*/lock"))


# -- Freeing -----------------------------------------------------------------------------------------


def _trial(home: Home, folder: TrialFolder, forgetting: str | None, why: str) -> Freeable:
    free = partial(_free_trial, home, folder, forgetting)
    return Freeable("trial", folder.root, why, size_of(folder.root), free)


def _free_trial(home: Home, folder: TrialFolder, forgetting: str | None) -> bool:
    if not _there(folder.root):
        return True
    with folder.lock() as held:
        if not held or folder.id in named_trials(home, but=forgetting):  # a sweep may have begun since it was found
            return False
        going = folder.root.with_name(f"{_GOING}{folder.id}")
        shutil.rmtree(going, ignore_errors=True)
        folder.root.rename(going)
        shutil.rmtree(going)
    return True


def _free_held(folder: TrialFolder, path: Path) -> bool:
    with folder.lock() as held:
        if held:
            _remove(path)
        return held


def _free_log(home: Home, path: Path) -> bool:
    return not _sweep_runs(home) and _remove(path)  # one may have begun since it was found


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def _there(path: Path) -> bool:
    """A folder of ours; a link leads to a place that somebody chose, and is left alone."""
    return path.is_dir() and not path.is_symlink()


def readable(size: float) -> str:
    """`512 B`, `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count as what they are."""
    total = 0
    for file in [path] if path.is_symlink() or not path.is_dir() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += 0 if file.is_dir() and not file.is_symlink() else file.lstat().st_size
    return total
