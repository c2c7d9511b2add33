"""Load a trained trial outside the lab: its network, latents and spectra. No MLflow, no Ray, no pickle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsd_lab.core.model.network import Network
from dsd_lab.core.training import checkpoints
from dsd_lab.core.training.checkpoints import load_tensors
from dsd_lab.errors import BadInput, CorruptCheckpoint
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.outputs import Output
from dsd_lab.home.plugins import recorded_fields
from dsd_lab.home.spool import read_spool
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.trial import Trial

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 512


@dataclass(frozen=True)
class LoadedTrial:
    """A finished trial."""

    id: str
    network: Network
    """EMA weights, evaluation mode, on the CPU, gradients off."""
    fields: Trial
    seed: int


def load_trial(home: str | Path, trial_id: str) -> LoadedTrial:
    """Load the network of a finished trial from its newest checkpoint (safetensors, verified by SHA-256).

    Args:
        home: the home folder.
        trial_id: the id, its first characters, or the name, such as `naive s0`.

    Raises:
        BadInput: there is no such trial, or it is not finished.
        CorruptCheckpoint: its checkpoint is damaged, or absent, as after an import without weights.
    """
    folder = find_trial(Home(Path(home)), trial_id)
    description, state = folder.description(), folder.state()
    if description is None or state != "done":
        raise BadInput(f"{trial_id}: the trial is {state}; only a finished one can be loaded")
    found = checkpoints.list_checkpoints(folder.checkpoints)
    if not found:
        raise CorruptCheckpoint(f"{folder.checkpoints}: no checkpoint to load weights from")
    tensors, _ = checkpoints.load_checkpoint(found[0])
    fields = recorded_fields(description, Path(home))
    network = Network(fields, _channels(tensors, fields, found[0]), description.data.classes)
    load_tensors(network, "average", tensors, found[0])
    return LoadedTrial(folder.id, network.requires_grad_(False).eval(), fields, description.seed)


def _channels(tensors: dict[str, torch.Tensor], fields: Trial, path: Path) -> int:
    """Colour channels of the images, read off the shape of the first layer's weight [width, channels x patch^2]."""
    weight, patch = tensors.get("average.patch_in.weight"), fields.network.patch_size
    if weight is None or weight.dim() != 2 or patch is None or weight.shape[1] % patch**2:
        raise CorruptCheckpoint(f"{path}: holds no network that reads patches of {patch} pixels")
    return weight.shape[1] // patch**2


def latents_output(home: Home, path: Path) -> Output:
    """Where `export_latents` writes. Only a file that it wrote itself is overwritten."""
    return Output(home, path.parent, f"--out {path}", file=path.name)


def export_latents(home: str | Path, trial_id: str, path: str | Path, split: str = "holdout") -> dict[str, Any]:
    """Write the latents of a split and the spectra over training to a compressed `.npz`, which loads without pickle.

    Arrays: `z` [N, T, c] float32 (latents after the normaliser, EMA weights) and `y` [N] (labels). Each probed
    spectrum, such as `spectrum/token`, is `<name>` [S, K] with its steps `<name>/step` [S]; probes where it was not
    finite are left out.

    Args:
        home: the home folder.
        trial_id: the id, its first characters, or the name, such as `naive s0`.
        path: file to write.
        split: `holdout` or `train`.

    Returns:
        Shapes of the arrays by name.

    Raises:
        BadInput: as `load_trial`; or the data differ from the trial's; or `path` is a file that dsd-lab did not write.
        CorruptCheckpoint: as `load_trial`.
    """
    loaded = load_trial(home, trial_id)
    folder = Home(Path(home)).trial(loaded.id)
    data = DataShelf().of_trial(folder, loaded.fields, Home(Path(home)))
    images = {"holdout": data.holdout, "train": data.train}[split]
    parts = [
        loaded.network.encode(images.at(i, torch.device("cpu"))[0]) for i in torch.arange(len(images)).split(_BATCH)
    ]
    arrays: dict[str, NDArray[Any]] = {"z": torch.cat(parts).numpy(), "y": images.labels.numpy()}
    rows: dict[str, list[tuple[int, list[float]]]] = {}
    for entry in read_spool(folder.spool):
        for name, values in entry.spectra.items():
            rows.setdefault(f"spectrum/{name}", []).append((entry.step, values))
    for name, found in rows.items():
        arrays[name] = np.array([values for _, values in found])
        arrays[f"{name}/step"] = np.array([step for step, _ in found])
    with tempfile.TemporaryDirectory() as scratch:
        with (Path(scratch) / Path(path).name).open("wb") as file:  # numpy would add a suffix to a path
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        latents_output(Home(Path(home)), Path(path)).publish(Path(scratch), {})
    return {name: list(array.shape) for name, array in arrays.items()}
