"""`dsd-lab sample`: sample images from a trained trial."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_lab.cli.console import table_console
from dsd_lab.cli.interrupt import acknowledge_signals
from dsd_lab.cli.options import home_of, place_of, print_json, with_processes
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.home.lookup import find_trial
from dsd_lab.home.outputs import Output
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.signals import StopSignals
from dsd_lab.specs.checks import lacking_guidance
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.part_fields import all_names, expected
from dsd_lab.specs.protocols import PROTOCOLS
from dsd_lab.specs.training import lacking_average

if TYPE_CHECKING:
    from torch import Tensor

    from dsd_lab.evaluation.drawing import Drawn
    from dsd_lab.specs.trial import Generation

_OPTIONS = {"images": "n", "labels": "labels", "sampler": "sampler", "steps": "steps", "guidance": "guidance"}
_OPTIONS |= {"weights": "weights", "precision": "precision", "checkpoint": "checkpoint"}
"""Settings of an evaluation, and the options that give them here."""
_FEW, _SHOWN = 16, 100
"""Images where no number is given, and those that the grid of an .npz shows."""
_STOPPING = "stopping after the current block of images; the same command resumes; Ctrl-C again stops at once"


def run(arguments: argparse.Namespace) -> int:
    """Write PNGs to a separate folder, or one .npz, with the grid outside it: metrics of a folder must not count the grid."""
    home = home_of(arguments)
    folder = find_trial(home, arguments.trial)
    settings, count = _settings(arguments)
    description = folder.description()
    if description is None or folder.state() != "done":
        raise BadInput(f"{arguments.trial}: the trial is {folder.state()}; only a finished one can be sampled")

    place = place_of(arguments.out, "--out") if arguments.out else home.root / "samples" / folder.id
    if place.exists() and not place.is_dir():
        raise BadInput(f"--out {place}: is a file; give a folder")
    output = Output(home, place, f"--out {place}", aside=arguments.out is None)
    output.check(["grid.png"], alone="images")

    import torch

    from dsd_lab.core.training.trainer import pick_device
    from dsd_lab.evaluation.drawing import StoppedDrawing
    from dsd_lab.evaluation.sampling import BLOCK, labels_of
    from dsd_lab.evaluation.workspace import EvaluationCache
    from dsd_lab.home.plugins import planned_again, recorded_fields
    from dsd_lab.runs.peers import started_here

    trial = recorded_fields(description, home.root)
    if not trial.has_denoiser:
        raise BadInput(f"{arguments.trial}: {description.variant!r} has no denoiser to sample from")
    if (unguided := lacking_guidance(settings.guidance, trial)) is not None:
        raise BadInput(f"--guidance: {description.variant!r} {unguided}")
    if (average := lacking_average(settings.weights, trial.training)) is not None:
        raise BadInput(f"--weights {settings.weights}: {description.variant!r} {average}")
    if isinstance(settings.checkpoint, int) and settings.checkpoint not in folder.saved_steps():
        there = ", ".join(map(str, folder.saved_steps()))
        raise BadInput(f"--checkpoint {settings.checkpoint}: no such checkpoint; there are {there}")
    data = DataShelf().of_trial(folder, trial, home)
    if not data.conditional and settings.guidance != 1:
        raise BadInput(f"--guidance {settings.guidance:g}: the data has no classes for guidance")
    chosen = None if arguments.label is None else class_number(arguments.label, data.classes, data.class_names)
    gpus = trial.resources.gpus if torch.cuda.is_available() else 0.0
    if gpus != trial.resources.gpus:
        say("dsd-lab: no GPU is visible: sampling on the CPU", error=True)
    y = labels_of(settings.model_copy(update={"images": count}), data)
    y = y if chosen is None else torch.full((count,), chosen)
    trial = trial.model_copy(update={"resources": trial.resources.model_copy(update={"gpus": gpus})})
    planned = with_processes(planned_again(description, trial), arguments.processes)
    team = min(planned.fields.resources.team, -(-count // BLOCK))  # a process without a block is not started
    planned = with_processes(planned, team)

    from rich.progress import Progress, TextColumn

    console = table_console(stderr=True)
    with (
        Progress(
            TextColumn("{task.description}"),
            console=console,
            disable=arguments.json or not console.is_terminal,
            transient=True,
        ) as bar,
        StopSignals() as stop,
        acknowledge_signals(lambda line: console.print(line, soft_wrap=True), _STOPPING),
        started_here(home, planned) as peers,
    ):
        task = bar.add_task("")
        bench = EvaluationCache(
            planned.fields,
            folder.checkpoints,
            data,
            pick_device(gpus),
            home,
            lambda drawn, of: bar.update(task, description=f"{drawn:,}/{of:,} images"),
            peers,
            stop,
            arguments.seed,
            "sample",
        )
        with locked(bench.place(settings, y).with_suffix(".lock"), wait=False) as held:
            if not held:
                raise BadInput(f"{arguments.trial}: another process is drawing these images")
            try:
                drawn = bench.samples(settings, y)
            except StoppedDrawing:
                say("stopped; the same command resumes", error=True)
                return stop.exit_code
            files = _publish(drawn, y, output, home.cache if arguments.npz else None)
            bench.forget_samples()
            bench.place(settings, y).with_suffix(".lock").unlink(missing_ok=True)
    of_class = None if chosen is None else {"number": chosen, "name": name_of(chosen, data.class_names)}
    if arguments.json:
        print_json({"trial": folder.id, "class": of_class, "files": [str(output.folder / name) for name in files]})
    else:
        what = f" of class {chosen} ({name_of(chosen, data.class_names)})" if chosen is not None else ""
        where = files[0] if arguments.npz else "images"
        say(f"{count} images{what} in {output.folder / where}, and {output.folder / 'grid.png'}")
    return OK


def _settings(arguments: argparse.Namespace) -> tuple[Generation, int]:
    """How images are drawn, and how many.

    Raises:
        BadInput: an option is not valid, or is not the protocol's.
    """
    from dsd_lab.cli.evaluate import evaluations_from

    if arguments.sampler not in (None, *all_names("sampler")):
        raise BadInput(f"--sampler {arguments.sampler}: it must be {expected('sampler')}")
    given = {name: v for name, option in _OPTIONS.items() if (v := getattr(arguments, option)) is not None}
    if arguments.protocol is not None:
        for name, value in PROTOCOLS[arguments.protocol].sampling.items():
            if given.setdefault(name, value) != value:
                raise BadInput(
                    f"--{_OPTIONS[name]} {given[name]}: protocol {arguments.protocol} has {value}; leave one out"
                )
    count: int = given.pop("images", _FEW)
    if arguments.label is not None and {"labels"} & given.keys():
        raise BadInput("--class: all images have this class, so --labels and --protocol have no effect; leave one out")
    (settings,) = evaluations_from(given)
    return settings, count


def _publish(drawn: Drawn, y: Tensor, output: Output, scratch: Path | None) -> list[str]:
    """Put the images and a grid of them into the user's folder; names of the files.

    Args:
        drawn: the images.
        y: their labels.
        output: the user's folder.
        scratch: where an .npz is made, instead of PNGs.
    """
    from dsd_lab.core.observing.pictures import png, tile
    from dsd_lab.evaluation.adm import adm_name, write_adm

    with tempfile.TemporaryDirectory(dir=scratch) as made:
        here = Path(made)
        if scratch is not None:
            shown = drawn.first(_SHOWN)
            names = [adm_name(len(y), *shown.shape[2:])]
            write_adm(here / names[0], drawn.images(), y, *shown.shape[2:])
        else:
            names, shown = [f"images/{i:05d}-class{label}.png" for i, label in enumerate(y.tolist())], drawn.whole()
            (here / "images").mkdir()
            for name, image in zip(names, shown, strict=True):
                (here / name).write_bytes(png(image))
        (here / "grid.png").write_bytes(png(tile(shown, 10)))
        output.publish(here, {}, alone="images")
    return [*names, "grid.png"]


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
