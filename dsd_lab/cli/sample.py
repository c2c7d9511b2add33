"""`dsd-lab sample`: sample images from a trained trial."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dsd_lab.cli.options import home_of, place_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.outputs import Output
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.checks import lacking_guidance
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.part_fields import all_names, expected


def run(arguments: argparse.Namespace) -> int:
    """Write PNGs to a separate folder, with the grid outside it: metrics of a folder must not count the grid."""
    home = home_of(arguments)
    folder = find_trial(home, arguments.trial)
    if arguments.sampler not in all_names("sampler"):
        raise BadInput(f"--sampler {arguments.sampler}: it must be {expected('sampler')}")
    description = folder.description()
    if description is None or folder.state() != "done":
        raise BadInput(f"{arguments.trial}: the trial is {folder.state()}; only a finished one can be sampled")

    place = place_of(arguments.out, "--out") if arguments.out else home.root / "samples" / folder.id
    if place.exists() and not place.is_dir():
        raise BadInput(f"--out {place}: is a file; give a folder")
    output = Output(home, place, f"--out {place}", aside=arguments.out is None)
    output.check(["grid.png"], alone="images")

    import torch

    from dsd_lab.core.observing.pictures import png, tile
    from dsd_lab.core.training.trainer import pick_device
    from dsd_lab.evaluation.sampling import load_network, sample_images
    from dsd_lab.home.plugins import recorded_fields

    trial = recorded_fields(description, home.root)
    if not trial.has_denoiser:
        raise BadInput(f"{arguments.trial}: {description.variant!r} has no denoiser to sample from")
    if (unguided := lacking_guidance(arguments.guidance, trial)) is not None:
        raise BadInput(f"--guidance: {description.variant!r} {unguided}")
    data = DataShelf().of_trial(folder, trial, home)
    if not data.conditional and arguments.guidance != 1:
        raise BadInput(f"--guidance {arguments.guidance:g}: the data has no classes for guidance")
    chosen = None if arguments.label is None else class_number(arguments.label, data.classes, data.class_names)
    gpus = trial.resources.gpus if torch.cuda.is_available() else 0.0
    if gpus != trial.resources.gpus:
        say("dsd-lab: no GPU is visible: sampling on the CPU", error=True)
    device = pick_device(gpus)
    network = load_network(trial, folder.checkpoints, data, device, "ema")
    labels = torch.arange(arguments.n) % data.classes if chosen is None else torch.full((arguments.n,), chosen)
    images = sample_images(
        network, trial, labels, arguments.sampler, arguments.steps, arguments.guidance, arguments.seed, device
    )
    names = [f"images/{i:05d}-class{label}.png" for i, label in enumerate(labels.tolist())]
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        (drawn / "images").mkdir()
        for name, image in zip([*names, "grid.png"], [*images, tile(images, 10)], strict=True):
            (drawn / name).write_bytes(png(image))
        output.publish(drawn, {}, alone="images")
    out, files = output.folder, [str(output.folder / name) for name in (*names, "grid.png")]
    of_class = None if chosen is None else {"number": chosen, "name": name_of(chosen, data.class_names)}
    if arguments.json:
        print_json({"trial": folder.id, "class": of_class, "files": files})
    else:
        what = f" of class {chosen} ({name_of(chosen, data.class_names)})" if chosen is not None else ""
        say(f"{arguments.n} images{what} in {out / 'images'}, and {out / 'grid.png'}")
    return OK


def name_of(number: int, names: Sequence[str]) -> str:
    """Name of a class; its number where it has no name."""
    return names[number] if number < len(names) else str(number)


def class_number(text: str, classes: int, names: Sequence[str]) -> int:
    """The class number that `--class` means. Names take precedence over numbers.

    Raises:
        BadInput: there is no such class, or there are no classes.
    """
    if text in names:
        return list(names).index(text)
    if classes < 2:
        raise BadInput(f"--class {text}: the data has no classes")
    if text.isdecimal() and int(text) < classes:
        return int(text)
    meant = did_you_mean(text, list(names)) if names else ""
    raise BadInput(f"--class {text}: the data has classes 0 to {classes - 1}{meant}")
