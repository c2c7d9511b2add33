"""Missing files of a plan: images and weights."""

from __future__ import annotations

from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.specs.auxiliary import NO_FILES
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.sources import named_backbones
from dsd_lab.specs.sweep import Plan


def missing_data(plan: Plan) -> list[str]:
    """A line for each missing image folder: its path, and where to get the images."""
    paths = dict.fromkeys(t.fields.data.path for t in plan.trials if t.fields.data.path is not None)
    get = f"; get the images from {plan.spec.data_from}" if plan.spec.data_from else ""
    return [
        f"data.path: {path} is a file; unpack it and name the folder"
        if Path(path).is_file()
        else f"data.path: no such folder {path}{get}"
        for path in paths
        if not Path(path).is_dir()
    ]


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
