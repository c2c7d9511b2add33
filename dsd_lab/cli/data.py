"""`dsd-lab data`: show the images of a spec or a folder before training."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.outputs import Output
from dsd_lab.planning.data_check import described, facts_of, open_data
from dsd_lab.planning.requirements import missing_data
from dsd_lab.specs.identity import data_name
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.shipped import spec_file
from dsd_lab.specs.sweep import read_fields
from dsd_lab.specs.trial import Trial, unfit_images

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet

_COLUMNS, _ROWS = 10, 20
"""Images per class, and classes, on a contact sheet."""


def run(arguments: argparse.Namespace) -> int:
    """Print a description of the images."""
    home, trials = home_of(arguments), trials_of(arguments)
    sheets = _sheet_paths(place_of(arguments.out, "--out"), len(trials)) if arguments.out else []
    for path in sheets:
        _output(home, path).check([path.name])
    answers = []
    for number, trial in enumerate(trials):
        data = open_data(home, trial.data)
        answers.append(answer_of(data))
        unfit = unfit_images(trial, data.train.shape) if is_spec(arguments) else ""
        if unfit:
            say(f"dsd-lab: warning: {unfit}; `sweep` will refuse to run", error=True)
        if not arguments.json:
            _print(trial, data)
        if sheets:
            path = _sheet(data, home, sheets[number])
            say(f"contact sheet: {path}", error=arguments.json)
    if arguments.json:
        print_json(answers[0] if len(answers) == 1 else answers)
    return OK


def answer_of(data: DataSet) -> dict[str, Any]:
    """The JSON answer for a dataset."""
    facts = data.facts
    height, width = data.train.shape[1:]
    same = ("train", "holdout", "holdout_from", "classes", "class_names", "train_by_class", "holdout_by_class")
    size = {"channels": data.channels, "image_size": height if height == width else [height, width]}
    return {key: facts[key] for key in same} | size | {"fingerprint": data.fingerprint}


def is_spec(arguments: argparse.Namespace) -> bool:
    """Whether a spec was named, and no folder or `.zip` file of images."""
    place = Path(os.path.expanduser(arguments.spec))
    return not (place.is_dir() or (place.suffix.lower() == ".zip" and place.is_file()))


def trials_of(arguments: argparse.Namespace, **fields: Any) -> list[Trial]:
    """One trial per data set.

    Args:
        arguments: with a spec, or a folder of images.
        fields: of `data`, for a folder.
    """
    if is_spec(arguments):
        plan = load_sweep(spec_file(arguments.spec), arguments.profile, arguments.set)
        for missing in missing_data(plan):
            raise BadInput(f"{plan.path}: {missing}")
        return list({t.fields.data.model_dump_json(): t.fields for t in plan.trials}.values())
    if arguments.profile:
        raise BadInput("--profile: a folder has no profiles; give a spec")
    from dsd_lab.core.data import source_of
    from dsd_lab.core.data.prepared import prepared_fields

    folder = Path(os.path.expanduser(arguments.spec)).absolute()
    source = source_of(folder)
    found = prepared_fields(folder) if source == "prepared" else {"source": source, "path": str(folder)}
    return [read_fields({"data": found | fields}, arguments.set)]


def _print(trial: Trial, data: DataSet) -> None:
    first, *notes = described(facts_of(data))
    place = trial.data.path or trial.data.hub or "scikit-learn"
    say(f"data: {first}")
    say(f"source: {trial.data.source}, {place}, called {data_name(trial)} revision {trial.data.revision}")
    say(f"channels: {data.channels}, fingerprint: {data.fingerprint}")
    for note in notes:
        say(note)
    facts = data.facts
    names = data.class_names or ["all images"] * (data.classes == 1) or list(map(str, range(data.classes)))
    width = max(len("class"), *map(len, names))
    say(f"{'number':>6}  {'class':<{width}}  {'training':>8}  {'held out':>8}")
    for i, name in enumerate(names):
        say(f"{i:>6}  {name:<{width}}  {facts['train_by_class'][i]:>8,}  {facts['holdout_by_class'][i]:>8,}")


def _sheet_paths(path: Path, count: int) -> list[Path]:
    """The file of each data set's contact sheet; several are numbered."""
    if path.suffix.lower() != ".png":
        path = path / "contact-sheet.png"
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(count)]


def _output(home: Home, path: Path) -> Output:
    return Output(home, path.parent, f"--out {path}", file=path.name)


def _sheet(data: DataSet, home: Home, path: Path) -> Path:
    """Write an image with the first training images of every class, one row per class."""
    import torch

    from dsd_lab.core.observing.pictures import png, tile

    labels = data.train.labels
    rows = []
    for label in range(min(data.classes, _ROWS)):
        chosen = (labels == label).nonzero()[:, 0][: _COLUMNS if data.classes > 1 else _COLUMNS * _ROWS]
        found = data.train.bytes_at(chosen)
        blank = torch.full((-len(found) % _COLUMNS, *found.shape[1:]), 255, dtype=torch.uint8)
        rows.append(torch.cat([found, blank]))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / path.name).write_bytes(png(tile(torch.cat(rows), _COLUMNS)))
        _output(home, path).publish(Path(scratch), {})
    return path
