"""What MLflow holds of a trial besides metrics: parameters, tags and files, made from the trial's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput, CorruptCheckpoint
from dsd_lab.files.bounded import BadFile, read_plain
from dsd_lab.files.printable import printable
from dsd_lab.home.history import write_history
from dsd_lab.home.spool import is_whole_picture
from dsd_lab.home.sweep_records import Entry, Manifest
from dsd_lab.home.trial_folder import ENDED, TrialFolder
from dsd_lab.runs.continuity import format_codes, format_devices


def differing(trials: list[Entry]) -> list[str]:
    """Key paths of the training fields that differ among the trials of a manifest."""
    flats = [flat(t.canonical) for t in trials]
    keys = dict.fromkeys(k for fields in flats for k in fields)
    return [k for k in keys if len({json.dumps(fields.get(k)) for fields in flats}) > 1]


def flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`{"training": {"steps": 8}}` -> `{"training.steps": 8}`."""
    return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def sweep_parameters(manifest: Manifest) -> dict[str, Any]:
    """Parameters of a sweep's parent run: common fields of its trials, and its settings."""
    trials = manifest.trials
    apart, common = set(differing(trials)), flat(trials[0].canonical) if trials else {}
    made_of = {
        "profile": manifest.profile or "-",
        "variants": ", ".join(dict.fromkeys(t.variant for t in trials)),
        "seeds": ", ".join(dict.fromkeys(str(t.seed) for t in trials)),
        "trials": len(trials),
    }
    axes = {f"grid.{key}": ", ".join(map(str, values)) for key, values in manifest.spec.get("grid", {}).items()}
    return made_of | axes | {key: value for key, value in common.items() if key not in apart}


def status_tags(folder: TrialFolder, state: str) -> dict[str, str]:
    """Progress and error of a trial, and the origin of its result, which is known once its data was loaded."""
    status, description = folder.status(), folder.description()
    tags = {
        "dsd.state": state,
        "dsd.step": status.step,
        "dsd.seconds": status.seconds,
        "dsd.attempt": status.attempt or 1,
        "dsd.code": status.code or "unknown",
    }
    if changes := format_codes(status):
        tags["dsd.code_changes"] = changes
    if devices := format_devices(status):
        tags["dsd.device_changes"] = devices
    if status.error:
        tags["dsd.error"] = printable(status.error)[:500]
    if imported := folder.imported():
        tags["dsd.imported"] = imported.sweep
    if description is not None:
        origin = description.provenance
        tags |= {
            "dsd.device": origin.device,
            "dsd.git_dirty": str(origin.git_dirty).lower(),
            "dsd.data": description.data.fingerprint[:16],
            **({"dsd.command": origin.command[:5000]} if origin.command else {}),
            **({"mlflow.source.git.commit": origin.git_commit} if origin.git_commit else {}),
            **{f"dsd.version.{name}": version for name, version in origin.versions.items()},
        }
    return {name: str(value) for name, value in tags.items()}


def write_artifacts(folder: TrialFolder, state: str, target: Path) -> None:
    """Write what the report reads below `target`: the history, `trial.json` and, for an ended trial, `final/`.

    Writes none of it for a trial that failed before its data was loaded or whose `trial.json` is damaged.
    """
    if folder.description() is None:
        return
    for name in ("trial.json", "code.diff"):
        if (folder.root / name).exists():
            (target / name).write_bytes(_own_bytes(folder.root / name))
    write_history(folder.spool, target / "history.parquet")
    if state in ENDED:
        _write_final(folder, target / "final")


def _own_bytes(path: Path) -> bytes:
    """The bytes of a trial's file; what a link leads to is not sent to a store that others may read.

    Raises:
        BadInput: it is a link or a pipe.
    """
    if path.is_symlink():
        raise BadInput(f"{path}: is a link; in the folders of trials none is followed: remove it")
    try:
        return read_plain(path, None)
    except BadFile as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _write_final(folder: TrialFolder, final: Path) -> None:
    """The last image grids under fixed names, and the EMA weights as safetensors."""
    # Imports torch, so only for trials whose files are not in the store yet.
    from safetensors.torch import save

    from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint

    final.mkdir()
    for name in ("reconstruction", "samples"):
        grids = sorted(folder.images.glob(f"{name}-*.png"), reverse=True)
        if newest := next(filter(is_whole_picture, grids), None):
            (final / f"{name}.png").write_bytes(_own_bytes(newest))
    counted = folder.root / "parameters.json"
    if counted.exists():  # a trial imported without weights
        (final / "parameters.json").write_bytes(_own_bytes(counted))
    for path in list_checkpoints(folder.checkpoints)[:1]:
        try:
            tensors, _ = load_checkpoint(path)
        except CorruptCheckpoint:
            return
        average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
        (final / "weights.safetensors").write_bytes(save(average))  # `save_file` would ignore the umask
