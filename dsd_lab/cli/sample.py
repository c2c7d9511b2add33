"""`dsd-lab sample`: draw images from a trained trial."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.outputs import Output
from dsd_lab.runs.data_shelf import DataShelf


def run(arguments: argparse.Namespace) -> int:
    """Write PNGs into a folder of their own, and a grid beside it: scores of a folder of samples count no grid."""
    home = home_of(arguments)
    folder = find_trial(home, arguments.trial)
    description = folder.description()
    if description is None or folder.state() != "done":
        raise BadInput(f"{arguments.trial}: the trial is {folder.state()}; only a finished one can be sampled")

    place = Path(arguments.out) if arguments.out else home.root / "samples" / folder.id
    if place.exists() and not place.is_dir():
        raise BadInput(f"--out {place}: is a file; name a folder")
    output = Output(home, place, f"--out {place}", aside=arguments.out is None)
    output.check(["grid.png"], alone="images")

    import torch
    from PIL import Image

    from dsd_lab.core.observing.pictures import tile
    from dsd_lab.core.training.trainer import pick_device
    from dsd_lab.evaluation.sampling import load_network, sample_images
    from dsd_lab.specs.trial import Trial

    trial = Trial.model_validate(description["fields"])
    if not trial.has_denoiser:
        raise BadInput(f"{arguments.trial}: {description['variant']!r} has no denoiser to sample from")
    data = DataShelf().of_trial(folder, trial, home)
    if arguments.label is not None and not 0 <= arguments.label < data.classes:
        raise BadInput(f"--class {arguments.label}: the data has classes 0 to {data.classes - 1}")
    gpus = trial.resources.gpus if torch.cuda.is_available() else 0.0
    if gpus != trial.resources.gpus:
        print("dsd-lab: this process sees no GPU: sampling on the CPU", file=sys.stderr)
    device = pick_device(gpus)
    network = load_network(trial, folder.checkpoints, data, device, "ema")
    labels = (
        torch.arange(arguments.n) % data.classes
        if arguments.label is None
        else torch.full((arguments.n,), arguments.label)
    )
    images = sample_images(
        network, trial, labels, arguments.sampler, arguments.steps, arguments.guidance, arguments.seed, device
    )
    names = [f"images/{i:05d}-class{label}.png" for i, label in enumerate(labels.tolist())]
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        (drawn / "images").mkdir()
        for name, image in zip([*names, "grid.png"], [*images, tile(images, 10)], strict=True):
            array = image.permute(1, 2, 0).numpy()
            Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(drawn / name)
        output.publish(drawn, {}, alone="images")
    out, files = output.folder, [str(output.folder / name) for name in (*names, "grid.png")]
    if arguments.json:
        print_json({"trial": folder.id, "files": files})
    else:
        print(f"{arguments.n} images in {out / 'images'}, and {out / 'grid.png'}")
    return OK
