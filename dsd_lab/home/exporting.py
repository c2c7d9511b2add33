"""Write a sweep to a folder that another home folder can import."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_json
from dsd_lab.files.bounded import check_plain
from dsd_lab.files.sha256 import sha256_of
from dsd_lab.home.anonymous import anonymous, names_of, without_names
from dsd_lab.home.data_facts import other_images
from dsd_lab.home.export_format import INDEX, Index, Listed, kind_of
from dsd_lab.home.garbage import whole_checkpoint
from dsd_lab.home.home import Home
from dsd_lab.home.ownership import refuse_links
from dsd_lab.home.parameter_count import average_parameters
from dsd_lab.home.plugins import kept_path
from dsd_lab.home.record_types import FORMAT
from dsd_lab.home.spool import complete_lines
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.home.trial_records import Parameters, TrialRecord
from dsd_lab.training_code import training_code
from dsd_lab.version import __version__


def export_sweep(
    home: Home, manifest: Manifest, out: Path, weights: bool, nameless: bool = False, pictures: bool = True
) -> Index:
    """Export a sweep with everything that a reviewer needs. Returns the index, which is written last.

    Args:
        home: where the sweep ran.
        manifest: of the sweep.
        out: a new or empty folder.
        weights: include the newest valid checkpoint of every trial.
        nameless: leave out absolute paths, process ids, host and user names, for anonymous review.
        pictures: include reconstructions and samples.

    Raises:
        BadInput: `out` is in use, a trial is running, or the trials were trained on different images.
    """
    taken = BadInput(f"--out {out}: already exists; name a new or empty folder")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise taken
    out.parent.mkdir(parents=True, exist_ok=True)
    # An unguessable name in a private folder, so that nobody can place a link there.
    private = Path(tempfile.mkdtemp(prefix=".exporting-", dir=out.parent))
    try:
        index = _write(home, manifest, private / "export", weights, nameless, pictures)
        try:
            (private / "export").rename(out)
        except OSError:  # created meanwhile
            raise taken from None
        return index
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _write(home: Home, manifest: Manifest, out: Path, weights: bool, nameless: bool, pictures: bool) -> Index:
    folders = [home.trial(i) for i in dict.fromkeys(manifest.ids)]
    _refuse_running(folders)
    refuse_links([home.sweep_folder(manifest.key), *(folder.root for folder in folders)])
    described = {folder.id: folder.description() for folder in folders}
    for trial, what in other_images({key: d for key, d in described.items() if d is not None}).items():
        raise BadInput(
            f"{manifest.key}: trial {trial} was trained on different images: {what}; remove it with `dsd-lab rm`, then export again"
        )
    sweep = out / "sweeps" / manifest.key
    sweep.mkdir(parents=True)
    # Left out: the spec's folder, which means nothing elsewhere, and single trials that are not the sweep's.
    own = manifest.model_dump(exclude_unset=True, exclude={"kept"}) | {"spec_path": Path(manifest.spec_path).name}
    Manifest.model_validate(own).write(sweep / "manifest.json")
    write_json(sweep / "spec.json", manifest.spec)
    for folder in folders:
        if folder.status().state != "pending":
            _copy_trial(folder, out / "trials" / folder.id, weights, pictures)
    for name, digest in _plugins_of(folders):
        source = kept_path(home, name, digest)
        if source.is_file():  # False for an installed package
            (out / "plugins" / digest).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / "plugins" / digest / source.name)
    _refuse_running(folders)
    if nameless:
        _make_anonymous(home, out)
    index = Index(
        format=FORMAT,
        sweep=manifest.key,
        weights=weights,
        schema_version=manifest.schema_version,
        made_by={"dsd-lab": __version__, "code": training_code()},
        files={str(p.relative_to(out)): _listed(p) for p in sorted(out.rglob("*")) if p.is_file()},
    )
    unknown = [name for name in index.files if kind_of(name) is None]
    if unknown:
        raise BadInput(f"{unknown[0]}: a file of this name cannot be exported; rename it in {home.root}")
    index.write(out / INDEX)
    return index


def _plugins_of(folders: list[TrialFolder]) -> list[tuple[str, str]]:
    """Name and digest of the plug-ins that were loaded in training."""
    described = filter(None, (folder.description() for folder in folders))
    return sorted({pair for d in described for pair in d.provenance.plugins.items()})


def _make_anonymous(home: Home, out: Path) -> None:
    described = [TrialRecord.read(path) for path in sorted(out.glob("trials/*/trial.json"))]
    names = names_of({d.provenance.machine.host for d in described if d is not None})
    user = os.path.expanduser("~")
    roots = (home.root.resolve(), *([Path(user)] if os.path.isabs(user) else []))  # a user may have no folder
    for pattern in ("sweeps/*/*.json", "trials/*/*.json", "trials/*/evaluations/*.json"):
        for path in out.glob(pattern):
            write_json(path, anonymous(json.loads(path.read_text()), names, roots))
    for path in out.glob("trials/*/spool.jsonl"):
        lines = [json.dumps(anonymous(json.loads(line), names, roots)) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{line}\n" for line in lines))
    for path in out.glob("trials/*/code.diff"):
        path.write_text(without_names(path.read_text(), names, roots))


def _refuse_running(folders: list[TrialFolder]) -> None:
    running = [folder.id for folder in folders if folder.is_locked()]
    if running:
        raise BadInput(f"{len(running)} trials are running, such as {running[0]}; export after they end")


def _copy_trial(folder: TrialFolder, target: Path, weights: bool, pictures: bool) -> None:
    target.mkdir(parents=True)
    for name in ("trial.json", "status.json", "parameters.json", "code.diff"):
        if (folder.root / name).exists():
            _copy(folder.root / name, target / name)
    if folder.spool.exists():
        (target / "spool.jsonl").write_bytes(b"".join(complete_lines(folder.spool)))
    for pattern in ("images/*.png", "evaluations/*.json") if pictures else ("evaluations/*.json",):
        for path in sorted(folder.root.glob(pattern)):
            place = target / path.relative_to(folder.root)
            place.parent.mkdir(exist_ok=True)
            _copy(path, place)
    newest = whole_checkpoint(folder.checkpoints)
    if newest is None:
        return
    if weights:
        shutil.copytree(newest, target / "checkpoints" / newest.name)
    else:
        counted = Parameters(parameters=average_parameters(newest / "tensors.safetensors"))
        counted.write(target / "parameters.json")


def _copy(path: Path, place: Path) -> None:
    check_plain(path)  # a pipe would end in the traceback of a library
    shutil.copyfile(path, place, follow_symlinks=False)


def _listed(path: Path) -> Listed:
    return Listed(sha256=sha256_of(path), bytes=path.stat().st_size)


def index_summary(index: Index) -> dict[str, Any]:
    """The export as `--json` prints it."""
    trials = {name.split("/")[1] for name in index.files if name.startswith("trials/")}
    size = sum(listed.bytes for listed in index.files.values()) + len(index.model_dump_json())
    summary = index.model_dump(include={"format", "sweep", "weights"})
    return summary | {"trials": len(trials), "files": len(index.files), "bytes": size}
