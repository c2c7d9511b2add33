"""Import an exported sweep into a home folder. The exported folder is untrusted.

All files are copied into the home folder, and the copies are hashed and checked before they are moved
to their places. Trials are moved first and the sweep's record last, so an interrupted import can be
repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import make_folder, sync_folder
from dsd_lab.files.bounded import read_plain
from dsd_lab.files.image_files import DamagedImage, open_grid
from dsd_lab.files.locks import locked
from dsd_lab.home.data_facts import declared_in, other_images, trained_images
from dsd_lab.home.export_format import INDEX, Index, kind_of, parsed
from dsd_lab.home.exported_folder import check_sizes, check_tree, index_of
from dsd_lab.home.home import Home
from dsd_lab.home.plugins import kept_path
from dsd_lab.home.spool import complete_lines
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.specs.identity import canonical_ids, trial_id
from dsd_lab.specs.trial import SCHEMA_VERSION

STAGING, LOCK = ".importing-", "lock"
"""Beginning of the name of the folder with the copy, and its lock: where nobody holds it, the import was killed."""
_CHUNK = 2**20
_OWN = {"format", "spec_path", "run_at", "kept", "imported", "command", "set"}
"""Entries of a manifest that are about time, place or single trials, not about the sweep itself."""


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    sweep: str
    added: list[str]
    skipped: list[str]
    """Trials that the home folder already had, with equal content."""


def import_sweep(home: Home, source: Path) -> Imported:
    """Check an exported folder and add its sweep and trials to a home folder.

    Raises:
        BadInput: the folder differs from its index, its content is invalid, or the home folder has a different
        trial or sweep of the same name. Nothing is added.
        NoResources: the disk has no room for a copy.
    """
    index = index_of(source)
    check_tree(source, index)
    check_sizes(source, home, index)
    missing = [path for path in (home.root, *home.root.parents) if not path.exists()]
    home.check_writable()
    staging = Path(tempfile.mkdtemp(dir=home.root, prefix=STAGING))
    with locked(staging / LOCK), _removed_afterwards(staging, missing):
        documents = {name: _copy(source, name, staging, index) for name in index.files}
        _check_documents(index, documents)
        _refuse_relabelled(home, documents[f"sweeps/{index.sweep}/manifest.json"])
        ids = sorted({name.split("/")[1] for name in index.files if name.startswith("trials/")})
        there = [i for i in ids if os.path.lexists(home.trial(i).root)]
        for trial in there:
            _refuse_other_trial(home, trial, staging, index)
        manifest = documents[f"sweeps/{index.sweep}/manifest.json"]
        _refuse_other_sweep(home, manifest)
        _refuse_other_images(home, {d.id: d for d in documents.values() if isinstance(d, TrialRecord)})
        home.prepare()  # only now: a refused import must not turn a folder into a home
        return _move_into_home(home, index, manifest, staging, [i for i in ids if i not in there], there)


@contextlib.contextmanager
def _removed_afterwards(staging: Path, missing: list[Path]) -> Iterator[None]:
    """Remove the copy at the end, and the folders that were made for it where nothing was added."""
    try:
        yield
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty after a success
            for path in missing:
                path.rmdir()


def _move_into_home(
    home: Home, index: Index, manifest: Manifest, staging: Path, added: list[str], there: list[str]
) -> Imported:
    """Move the checked files to their places."""
    for source in sorted((staging / "plugins").glob("*/*.py")):
        kept = kept_path(home, source.stem, source.parent.name)
        make_folder(kept.parent)
        if not os.path.lexists(kept):  # one's own stays: two sources can share twelve digits of a hash
            source.replace(kept)
            sync_folder(kept.parent)
    trials = home.root / "trials"
    make_folder(trials)
    for trial in added:
        copied = staging / "trials" / trial
        home.trial(trial).mark_imported(index.sweep, index.made_by, copied)
        for folder in (copied, *filter(Path.is_dir, copied.rglob("*"))):
            sync_folder(folder)  # a power cut must not leave half of a trial that nobody here can train
        copied.rename(home.trial(trial).root)
    sync_folder(trials)
    if index.sweep not in home.manifests():
        left_out = {"format", "kept", "command", "set"}  # about where it ran and about single trials
        foreign = manifest.model_dump(exclude_unset=True, exclude=left_out)
        home.write_manifest(Manifest.model_validate(foreign | {"imported": {"at": time.time()}}))
    return Imported(index.sweep, added, there)


# -- The copy ------------------------------------------------------------------------------------------


def _copy(source: Path, name: str, staging: Path, index: Index) -> Any:
    """Copy a file while hashing it, and check the copy. Returns the parsed content of a JSON file."""
    listed, target, path = index.files[name], staging / name, source / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file, target.open("xb") as copy:
        while size <= listed.bytes and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            copy.write(chunk)
            size += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    if size != listed.bytes or digest.hexdigest() != listed.sha256:
        raise BadInput(f"{path}: differs in size or SHA-256 from {INDEX}")
    kind = str((kind_of(name) or ("", None))[0])
    if kind == "png":
        try:
            open_grid(target)
        except DamagedImage as damage:
            raise BadInput(f"{path}: is not a valid PNG of a trial: {damage}") from None
        return None
    if kind == "tensors":
        _check_tensors(path, target)
        return None
    if kind == "diff":
        return None
    if kind == "py":
        if digest.hexdigest()[:12] != target.parent.name:
            raise BadInput(f"{path}: its digest differs from the name of its folder")
        return None
    return parsed(kind, str(path), target.read_bytes())


def _check_tensors(path: Path, copy: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(copy, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BadInput(f"{path}: is not safetensors: {str(error).splitlines()[0]}") from None


# -- What the files say ----------------------------------------------------------------------------------


def _check_documents(index: Index, documents: dict[str, Any]) -> None:
    """Check that the files are consistent: the sweep with its trials, the trials' ids with their fields."""
    where = f"sweeps/{index.sweep}/manifest.json"
    manifests = {name for name in documents if name.startswith("sweeps/")}
    if not {where} <= manifests <= {where, f"sweeps/{index.sweep}/spec.json"} or documents[where].key != index.sweep:
        raise BadInput(f"{INDEX}: the sweep {index.sweep!r} differs from that of its manifest")
    known = {entry.id: entry for entry in documents[where].trials}
    if index.schema_version == SCHEMA_VERSION:
        for entry in known.values():
            if _id_of(entry.canonical, entry.seed) != entry.id:
                raise BadInput(f"{where}: {entry.name!r}: its fields do not give its id {entry.id}")
    for name, content in documents.items():
        kind, trial = kind_of(name) or ("", None)
        if trial is None:
            continue
        if trial not in known:
            raise BadInput(f"{name}: the sweep has no trial {trial}")
        if f"trials/{trial}/status.json" not in documents:
            raise BadInput(f"trials/{trial}: has no status.json")
        if kind == "trial":
            own = (
                trial_id(content.trial, content.seed, content.canonical.get("plugins", {}))
                if content.schema_version == SCHEMA_VERSION
                else trial
            )
            if not content.id == own == trial:
                raise BadInput(f"{name}: its fields give the id {own}, not {trial}")
            entry = known[trial]
            if content.seed != entry.seed or not _same_fields(content.canonical, entry.canonical, entry.seed):
                raise BadInput(f"{name}: contradicts what {where} says of the trial")
        if kind == "status" and content.steps != known[trial].steps:
            raise BadInput(f"{name}: {content.steps} steps, but {where} says {known[trial].steps}")
        if kind == "status" and content.state == "done" and f"trials/{trial}/trial.json" not in documents:
            raise BadInput(f"{name}: the trial is finished but has no trial.json")
        if kind == "checkpoint":
            tensors = index.files.get(name.replace("manifest.json", "tensors.safetensors"))
            if tensors is None or (tensors.sha256, tensors.bytes) != (content.sha256, content.bytes):
                raise BadInput(f"{name}: its tensors differ from those that the trial wrote")


def _id_of(canonical: dict[str, dict[str, Any]], seed: int) -> str | None:
    try:
        return canonical_ids(canonical, [seed])[0]
    except (TypeError, ValueError, AttributeError):
        return None


def _same_fields(mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], seed: int) -> bool:
    """Whether two records are of the same trial. Fields that a later version added with a default do not count."""
    return mine == theirs or _id_of(mine, seed) == _id_of(theirs, seed) is not None


def _refuse_relabelled(home: Home, manifest: Manifest) -> None:
    """Refuse a manifest that lists an existing trial with other fields than it was trained with."""
    for entry in manifest.trials:
        mine = home.trial(entry.id).description()
        if mine is not None and not _same_fields(mine.canonical, entry.canonical, entry.seed):
            raise BadInput(
                f"{home.trial(entry.id).root}: was trained with other fields than the import gives for {entry.name!r}; nothing is imported"
            )


def _refuse_other_trial(home: Home, trial: str, staging: Path, index: Index) -> None:
    """Refuse a trial that exists already, unless it has every imported file with equal content."""
    folder = home.trial(trial)
    for name in index.files:
        if not name.startswith(f"trials/{trial}/"):
            continue
        mine = home.root / name
        if name.endswith("/parameters.json") and not mine.exists():
            continue  # it only replaces absent weights
        whole = b"".join(complete_lines(mine)) if name.endswith("/spool.jsonl") else _bytes(mine)
        if whole != _bytes(staging / name):
            raise BadInput(
                f"{folder.root}: is another run of this trial ({Path(name).name} differs); nothing is overwritten; import into another --home"
            )


def _refuse_other_images(home: Home, theirs: dict[str, TrialRecord]) -> None:
    """Refuse imported trials whose images differ from those of this home under the same declared dataset."""
    declared = {declared_in(description) for description in theirs.values()}
    known = [entry.trial for key, trained in trained_images(home).items() if key in declared for entry in trained]
    mine = {i: d for i in known if i not in theirs and (d := home.trial(i).description()) is not None}
    for trial, what in other_images(mine | theirs).items():
        raise BadInput(
            f"trial {trial}: its images differ from those of {home.root} under the same data name and revision: {what}; import into another --home"
        )


def _refuse_other_sweep(home: Home, theirs: Manifest) -> None:
    mine = home.manifests().get(theirs.key)
    if mine is not None and mine.model_dump(exclude=_OWN) != theirs.model_dump(exclude=_OWN):
        raise BadInput(
            f"{home.sweep_folder(theirs.key)}: is a different sweep of this name; nothing is overwritten; import into another --home"
        )


def _bytes(path: Path) -> bytes | None:
    return read_plain(path, None) if path.is_file() else None
