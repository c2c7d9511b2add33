"""Missing files of a plan: images and weights."""

from __future__ import annotations

import shlex
from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.specs.auxiliary import NO_FILES
from dsd_lab.specs.data import Data
from dsd_lab.specs.known_data import DATA_SETS, LAYOUTS
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.sources import named_backbones
from dsd_lab.specs.sweep import Plan


def missing_data(plan: Plan) -> list[str]:
    """A line for each missing folder or file of images: its path, and where to get the images."""
    missing: dict[str, str] = {}
    for data in (t.fields.data for t in plan.trials):
        if data.path is not None and data.path not in missing and not data.is_there:
            missing[data.path] = _missing(data, data.path, plan.spec.data_from)
    return list(missing.values())


def _missing(data: Data, path: str, origin: str) -> str:
    """The verb, the address and the layout, as far as they are known."""
    if Path(path).is_file():
        reads = "; data.source: zip reads it as it is" if path.lower().endswith(".zip") else ""
        return f"data.path: {path} is a file; unpack it and name the folder{reads}"
    if data.source == "zip" and Path(path).is_dir():
        return f"data.path: {path} is a folder; data.source: folder reads it"
    name = Path(path).name
    verb = f"run `dsd-lab fetch-data {name} --out {shlex.quote(path)}`" if name in DATA_SETS else ""
    get = " or ".join(filter(None, [verb, f"get the images from {origin}" if origin else ""]))
    layout = f"; {data.source} reads {LAYOUTS[data.source]}" if data.source in LAYOUTS else ""
    what = "file" if data.source == "zip" else "folder"
    return f"data.path: no such {what} {path}{'; ' if get else ''}{get}{layout}"


def missing_weights(plan: Plan) -> list[str]:
    """`key: no such file PATH` for each missing weights file of a timm model.

    Raises:
        BadInput: timm does not know a model.
    """
    every = dict.fromkeys(named for t in plan.trials for named in named_backbones(t.fields).values())
    for named in every:
        from dsd_lab.core.model.backbones import check_name  # imports torch: only where a model is named

        try:
            check_name(named)
        except BadInput as error:
            raise BadInput(f"{plan.path}: {error}") from None
    missing = []
    for named in every:
        if named.from_file and not Path(named.weights).is_file():
            near = did_you_mean(Path(named.weights).name, list(NO_FILES))
            meant = near if "did you mean" in near else ""
            missing.append(f"{named.weights_key}: no such file {named.weights}{meant}")
    return missing
