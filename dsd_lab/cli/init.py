"""`dsd-lab init`: write a commented starter spec, or a copy of a shipped one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from pathlib import Path

from dsd_lab.cli.options import place_of, print_json, program
from dsd_lab.errors import OK, BadInput, NoResources
from dsd_lab.files.printable import say
from dsd_lab.planning.requirements import missing_data
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.shipped import FOLDER, shipped_names
from dsd_lab.specs.yaml_document import parse_scalar

DEFAULT = "my_sweep.yaml"
_SCHEMA = "spec.schema.json"
_STARTER = """\
# yaml-language-server: $schema=spec.schema.json
# The line above lets an editor complete and check this file.
#   dsd-lab plan {file}      show trials, sizes and times without running anything
#   dsd-lab sweep {file}     run unfinished trials; resumes after an interruption
#   dsd-lab report {file}    tables, figures and pages
schema: 1
name: {name}                         # folder of the sweep and its MLflow experiment
why: >
  The question that this sweep answers; the report opens with it.

base:                                # fields of every trial; omitted fields have defaults
  data: {{source: digits}}             # or {{source: folder, path: ../photos}}; idx and parquet too
  network: {{size: nano8}}             # 8x8 images, 4 tokens x 8 channels: 32 latent numbers for 64 pixels
  latent: {{normaliser: layernorm}}    # fixes the scale of the latents; with none it can shrink or grow
  time: {{distribution: logit_normal}}
  optimiser: {{lr: 1e-3}}

variants:                            # the compared variants: named overrides of the base
  control:
    why: Reconstruction only; the others are compared with it, paired by seed.
    objective: {{diffusion_weight: 0.0}}
  naive:
    why: A single loss with all gradients; the baseline that collapses.
    objective: {{target: live, output: velocity, loss_space: velocity}}
  dsd:
    why: Stop-gradient on an EMA target, and clean prediction.
    objective: {{target: ema, output: clean, loss_space: clean}}

# grid:                              # every variant at every grid point
#   latent.normaliser: [none, layernorm, batchnorm]

evaluate:                            # made for every finished trial; adding one retrains nothing
  - {{sampler: heun, steps: 25, guidance: 1.0, weights: ema, images: holdout}}

report: {{control: control}}           # also sets the thresholds of the verdict

profile: quick                       # the default of --profile
profiles:
  quick:
    seeds: [0, 1, 2]                 # gives intervals; p-values need 6 seeds
    base: {{training: {{steps: 800}}}}
  full:
    seeds: [0, 1, 2, 3, 4, 5]
    base: {{training: {{steps: 3000}}, probe: {{every: 200}}}}
"""


def run(arguments: argparse.Namespace) -> int:
    """Write the spec, and the schema that its first line names unless there is one."""
    path = place_of(arguments.path or (DEFAULT if arguments.source is None else f"{arguments.source}.yaml"), "PATH")
    if path.suffix not in (".yaml", ".yml"):
        better = path / DEFAULT if path.is_dir() else path.with_name(f"{path.name}.yaml")
        raise BadInput(f"{path}: a spec is a .yaml file; use a name such as {better}")
    content = starter(path) if arguments.source is None else _copied(arguments.source, path)
    parents = {} if arguments.source is None else _parents(arguments.source, path)
    schema = path.with_name(_SCHEMA)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent, text in parents.items():
            with parent.open("x", encoding="utf-8") as file:
                file.write(text)
        with path.open("x", encoding="utf-8") as file:  # raises if the path exists, also as a link
            file.write(content)
        new_schema = not os.path.lexists(schema)  # a dangling link is not overwritten either
        if new_schema:
            from dsd_lab.cli.schema import spec_schema

            text = json.dumps(spec_schema(), indent=1) + "\n"
            with contextlib.suppress(FileExistsError), schema.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        if not path.parent.is_dir():
            raise NoResources(f"{path}: cannot be written: {path.parent} is a file") from None
        raise BadInput(f"{path}: already exists and is not overwritten; use another name") from None
    except OSError as error:
        raise NoResources(f"{path}: cannot be written: {error.strerror}") from None
    if arguments.json:
        extends = [str(parent) for parent in parents]
        print_json({"spec": str(path), "schema": str(schema), "schema_written": new_schema, "extends": extends})
        return OK
    more = [*(f"{parent}, which it extends" for parent in parents), *([f"{schema} for editors"] if new_schema else [])]
    say(f"{path}: a spec to edit" + "".join(f", and {what}" for what in more))
    for missing in missing_data(load_sweep(path)):
        say(missing)
    command, at = program(arguments)
    say(f"next: {command} plan {path}{at}")
    return OK


def _copied(name: str, path: Path) -> str:
    """A shipped spec. It is renamed after its new file, so that its sweep has its own folder.

    Raises:
        BadInput: there is no such spec.
    """
    if name not in shipped_names():
        raise BadInput(f"--from {name}: no such shipped spec{did_you_mean(name, shipped_names())}")
    text = _text_of(name)
    return text if path.stem == name else re.sub(r"(?m)^name: .*$", f"name: {_plain(path)}", text, count=1)


def _parents(name: str, path: Path) -> dict[Path, str]:
    """The parents of a shipped spec at the paths where its copy looks for them, without those that exist.

    Raises:
        BadInput: a different file has the path of a parent.
    """
    found: dict[Path, str] = {}
    while extends := re.search(r"(?m)^extends: (.+)\.yaml$", _text_of(name)):
        name = extends[1]
        place, text = path.with_name(f"{name}.yaml"), _text_of(name)
        if place == path or os.path.lexists(place):
            if place == path or not place.is_file() or place.read_bytes() != text.encode():
                raise BadInput(
                    f"{place}: this is the place of the shipped spec {name}, which {path.name} extends; use another folder or name"
                )
        else:
            found[place] = text
    return found


def _text_of(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def starter(path: Path) -> str:
    """The starter spec, named after its file if that is a valid sweep name."""
    return _STARTER.format(file=path.name if path.name.isprintable() else DEFAULT, name=_plain(path))


def _plain(path: Path) -> str:
    """A file's name as sweep name in YAML, quoted if YAML would read it as a number."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9._-]", "_", path.stem.lower())).lstrip("._-")[:64]
    return (plain if isinstance(parse_scalar(plain, "name"), str) else f'"{plain}"') if plain else "my_sweep"
