"""What to measure: one trial per shape of a spec, or a size preset."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from dsd_lab.errors import BadInput
from dsd_lab.planning.estimates import shape_key
from dsd_lab.planning.requirements import missing_data, missing_weights
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.network import SIZES
from dsd_lab.specs.shipped import SUFFIXES, shipped_names, spec_file
from dsd_lab.specs.sweep import Plan, PlannedTrial


@dataclass(frozen=True)
class Subject:
    """A trial to measure."""

    spec: str
    """File of the spec, or name of the size."""
    plan: Plan
    trial: PlannedTrial
    random_images: bool
    """Whether random images replace the trial's own."""

    @property
    def name(self) -> str:
        """Name of the trial without its seed."""
        return self.trial.name.rsplit(" ", 1)[0]


def chosen_subjects(arguments: argparse.Namespace) -> list[Subject]:
    """The trials that the command line selects; the first of each group with identical steps.

    Raises:
        BadInput: a spec, size, variant or input file is missing.
    """
    found: list[Subject] = []
    for text in arguments.specs:
        size = text in SIZES
        plan = _plan_of_size(text, arguments) if size else _plan_of_spec(text, arguments)
        plan = plan.only([f"variant={','.join(arguments.variant)}"]) if arguments.variant else plan
        random = size or arguments.random_images
        for missing in [] if random else missing_data(plan):
            raise BadInput(f"{text}: {missing}; --random-images measures without it")
        for missing in missing_weights(plan):
            raise BadInput(f"{text}: {missing}")
        first: dict[str, PlannedTrial] = {}
        for trial in plan.trials:
            first.setdefault(_measurement_key(trial), trial)
        found += [Subject(text, plan, trial, random) for trial in first.values()]
    return found


def _plan_of_spec(text: str, arguments: argparse.Namespace) -> Plan:
    known = [*SIZES, *shipped_names()]
    if text != "-" and not Path(text).exists() and not text.endswith(SUFFIXES) and text not in known:
        raise BadInput(f"{text}: neither a spec nor a size{did_you_mean(text, known)}")
    return load_sweep(spec_file(text), arguments.profile, arguments.set)


def _plan_of_size(text: str, arguments: argparse.Namespace) -> Plan:
    """A trial of the method with its defaults, at a given size."""
    if arguments.profile is not None:
        raise BadInput(f"--profile {arguments.profile}: {text} is a size, which has no profiles")
    content = {"name": text, "base": {"network": {"size": text}}, "variants": {"dsd": {}}, "seeds": [0]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{text}.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_sweep(path, sets=arguments.set)


def _measurement_key(trial: PlannedTrial) -> str:
    """Key of everything that a measurement depends on."""
    fields = trial.fields
    rest = [part.model_dump() for part in (fields.data, fields.probe, fields.observation, fields.resources)]
    steps = fields.training.steps
    return json.dumps([shape_key(canonical_fields(fields)), *rest, steps], sort_keys=True)
