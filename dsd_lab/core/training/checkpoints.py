"""Checkpoints: one folder per checkpoint, with safetensors and JSON; nothing is unpickled.

`step-N/tensors.safetensors` holds all tensors. `step-N/manifest.json` holds the rest, the size and SHA-256 of the
tensors, and its own SHA-256. The folder is written under a temporary name, flushed and renamed last, so a crash never
leaves an incomplete checkpoint under a final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsd_lab.errors import BadInput, CorruptCheckpoint
from dsd_lab.files.atomic import make_folder, sync_folder
from dsd_lab.files.bounded import read_json, read_plain
from dsd_lab.files.checkpoint_manifest import CheckpointContent
from dsd_lab.files.sealed import sealed

if TYPE_CHECKING:
    from dsd_lab.core.training.optimiser import Optimisers

FORMAT = 1
_TENSORS, _MANIFEST = "tensors.safetensors", "manifest.json"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write `folder/step-N`, then remove all but the newest `keep` checkpoints and those of every `keep_every` steps.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are unchanged.
    """
    make_folder(folder)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    final, writing = folder / f"step-{step:09d}", folder / f".writing-{step:09d}"
    writing.mkdir()
    try:
        raw = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        _write_durably(writing / _TENSORS, raw)
        manifest = {
            "format": FORMAT,
            "step": step,
            "state": dict(state),
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
        _write_durably(writing / _MANIFEST, json.dumps(sealed(manifest), allow_nan=False).encode())
        sync_folder(writing)
        if final.exists():
            shutil.rmtree(final)
        writing.rename(final)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in list_checkpoints(folder)[keep:]:
        if keep_every is None or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old, ignore_errors=True)
    return final


def _write_durably(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one checkpoint.

    Raises:
        CorruptCheckpoint: a file is missing, changed, or not safetensors.
        BadInput: its format is newer than this program.
    """
    try:
        content = read_json(path / _MANIFEST)
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise BadInput(
                f"{path}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab"
            )
        if version != FORMAT:
            raise CorruptCheckpoint(f"{path}: there is no format {version!r}")
        manifest = CheckpointContent.model_validate(content)
        if not manifest.intact:
            raise CorruptCheckpoint(f"{path}: the manifest is not the one that was written")
        raw = read_plain(path / _TENSORS, None)
        if not manifest.is_of(len(raw), hashlib.sha256(raw).hexdigest()):
            raise CorruptCheckpoint(f"{path}: the tensors are not those that were written")
        return load(raw), manifest.state
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise CorruptCheckpoint(f"{path}: {_MANIFEST}: {key}: {first['msg']}") from None
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CorruptCheckpoint(f"{path}: {type(error).__name__}: {error}") from None


def newest_checkpoint(
    folder: Path, usable: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is intact and usable, or None.

    A damaged checkpoint is renamed to `damaged-...`: it is kept for inspection and not tried again.
    """
    for path in list_checkpoints(folder):
        try:
            tensors, state = load_checkpoint(path)
        except CorruptCheckpoint:
            _set_aside(path)
            continue
        if usable(state):
            return path, tensors, state
    return None


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)  # an earlier damaged checkpoint of the same step
    path.rename(aside)


def flatten_optimiser(optimiser: torch.optim.Optimizer | Optimisers) -> dict[str, Tensor]:
    """The optimiser's state tensors, named `<parameter index>.<name>`."""
    return {
        f"{index}.{name}": value
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer | Optimisers, tensors: Mapping[str, Tensor]) -> None:
    """Restore the output of `flatten_optimiser`; hyper-parameters come from the spec."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def tensors_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's state dict, with `prefix.` before every name."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def load_tensors(module: nn.Module, prefix: str, tensors: dict[str, Tensor], source: Path) -> None:
    """Restore the output of `tensors_of`; every name must be present.

    Raises:
        CorruptCheckpoint: names or shapes do not match the module; the message names `source`.
    """
    ours = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
    try:
        module.load_state_dict(ours)
    except RuntimeError as error:
        first = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise CorruptCheckpoint(f"{source}: the weights of another network: {first}") from None
