"""`dsd-lab plan`: show the trials of a spec, what they need and what is done."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from dsd_lab.cli.options import home_of, plan_of, print_json
from dsd_lab.cli.parts import plugin_lines
from dsd_lab.cli.plan_tables import FROM_BENCH, print_plan, print_wrapped
from dsd_lab.errors import OK, BadInput
from dsd_lab.evaluation.reference import unusable_files
from dsd_lab.files.printable import say
from dsd_lab.home.data_facts import known_facts, skipped
from dsd_lab.home.data_records import DataFacts
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.trial_folder import OTHER_IMAGES, TrialFolder, state_notes
from dsd_lab.planning.data_check import check_data
from dsd_lab.planning.disk import need_of
from dsd_lab.planning.estimates import ASSUMED_MFU, Shape, cached_bytes, cached_shape, shape_key, speedup, timed_seconds
from dsd_lab.planning.gpus import GPUS
from dsd_lab.planning.measured import benched_efficiency, benched_seconds, machine_ceiling
from dsd_lab.planning.requirements import missing_data, missing_weights
from dsd_lab.planning.shared_steps import find_beginning
from dsd_lab.runs.data_shelf import DataShelf, refuse_other_images, trained_on_others
from dsd_lab.specs.evaluate_list import of_trial
from dsd_lab.specs.identity import canonical_fields, evaluation_id
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.registry import plugins
from dsd_lab.specs.sweep import Plan, PlannedTrial
from dsd_lab.specs.training import Training
from dsd_lab.specs.trial import Data, Trial
from dsd_lab.training_code import training_code

_TIMED = "timed here"
"""Source of a time: trained trials of the same shape. Other sources are `dsd-lab bench` and FLOPs."""


def run(arguments: argparse.Namespace) -> int:
    """Print a plan."""
    plan, home = plan_of(arguments), home_of(arguments)
    for missing in missing_data(plan):
        say(f"dsd-lab: warning: {missing}; `sweep` will refuse to run", error=True)
    lines = check_data(home, plan.trials, plan.spec.evaluate, decode="small")
    facts_of = partial(known_facts, home)
    left_out = once_for_seeds(lambda fields: skipped(fields, facts_of(fields.data)))
    for line in dict.fromkeys(left_out(t.fields) for t in plan.trials):
        if line:
            say(f"dsd-lab: warning: {line}", error=True)
    for missing in missing_weights(plan):
        say(f"dsd-lab: warning: {missing}; `sweep` will refuse to run", error=True)
    for missing in unusable_files(plan.spec.evaluate, home):
        say(f"dsd-lab: warning: {missing}; `sweep` will refuse to run", error=True)
    changed = _other_images(home, plan)
    code = training_code()
    manifest = manifest_of(plan)
    timed = timed_seconds(home, manifest.trials)
    needs = once_for_seeds(lambda fields: _needs(fields, home, code, timed, arguments.gpu, facts_of))
    rows = []
    for trial in plan.trials:
        folder = home.trial(trial.id)
        begins = None if folder.checkpoints.exists() else find_beginning(home, trial)
        rows.append(
            {
                "id": trial.id,
                "variant": trial.variant,
                "point": trial.point,
                "seed": trial.seed,
                "size": trial.fields.network.size,
                "status": OTHER_IMAGES if trial.id in changed else folder.state(code),
                "evaluations_missing": _missing(plan, folder, trial),
                "overrides": trial.overrides,
                "begins_from": None if begins is None else {"trial": begins.folder.id, "step": begins.step},
                "gpus": trial.fields.resources.gpus,
                **needs(trial.fields),
            }
        )
    if arguments.json:
        sweep = {
            "name": plan.spec.name,
            "key": plan.key,
            "profile": plan.profile,
            "why": manifest.why,
            "trials": len(rows),
            "evaluations": manifest.evaluations,
            "plugins": {p.name: {"digest": p.digest, "path": str(p.path)} for p in plugins.values()},
        }
        print_json({"sweep": sweep, "trials": rows})
    else:
        for line in lines:
            print_wrapped(line)
        print_plan(plan, rows)
        for line in plugin_lines():
            say(line)
        for note in state_notes((row["status"] for row in rows), code):
            say(note)
    return OK


def _other_images(home: Home, plan: Plan) -> set[str]:
    """Trials trained on other images than the present ones, after a warning. Images are not decoded."""
    missing = missing_data(plan)
    there = [t for t in plan.trials if t.fields.data.path not in missing]
    shelf = DataShelf()
    try:
        refuse_other_images(home, there, shelf)
    except BadInput as error:
        say(f"dsd-lab: warning: {error}; `sweep` will refuse to run", error=True)
        return trained_on_others(home, there)
    return set()


def _needs(
    trial: Trial,
    home: Home,
    code: str,
    timed: dict[str, float],
    gpu: str,
    facts_of: Callable[[Data], DataFacts | None],
) -> dict[str, Any]:
    """What a trial with these fields needs, for any seed."""
    shape, training = cached_shape(trial, home, code), trial.training
    seconds, source = _seconds(trial, shape, timed, home, gpu)
    efficiency = benched_efficiency(home, trial, gpu)
    seconds /= speedup(trial.resources.team, efficiency)
    return {
        "params": shape.params,
        "copies": shape.copies,
        "auxiliary_params": shape.auxiliary,
        "frozen_params": shape.frozen,
        "flops_per_image": shape.flops_per_image,
        "flops_by_role": shape.role_flops,
        "flops_total": shape.flops_per_image * training.batch_size * training.steps,
        "memory_bytes": shape.memory(_own_part(trial), cached_bytes(trial, home, code)),
        "processes": trial.resources.team,
        "efficiency": efficiency,
        "disk_bytes": need_of(trial, home, code).total,
        "seconds": round(seconds, 3),
        "seconds_source": source,
        "data": None if (facts := facts_of(trial.data)) is None else facts.model_dump(exclude_unset=True),
    }


def _own_part(trial: Trial) -> Training:
    """Training settings of one process: its share of every batch."""
    parts, team = trial.training.grad_accum_steps, trial.resources.team
    own = -(-trial.training.batch_size // (parts * team)) * parts
    return trial.training.model_copy(update={"batch_size": own})


def _seconds(trial: Trial, shape: Shape, timed: dict[str, float], home: Home, gpu: str) -> tuple[float, str]:
    """Seconds of a whole trial in one process, and their source: the best known one.

    Args:
        trial: its fields.
        shape: its counts.
        timed: seconds per step of trained trials, by shape.
        home: holds the measurements of `dsd-lab bench`.
        gpu: planned GPU of trials that use one.
    """
    training = trial.training
    key = shape_key(canonical_fields(trial))
    if key in timed:
        return timed[key] * training.steps, _TIMED
    benched = benched_seconds(home, trial, gpu)
    if benched is not None:
        return benched[0], f"{FROM_BENCH} on {benched[1]}"
    flops = shape.flops_per_image * training.batch_size * training.steps
    if trial.resources.gpus > 0:
        peak = GPUS[gpu].peak(training.precision) * min(1.0, trial.resources.gpus)
        return flops / (peak * ASSUMED_MFU), f"from FLOPs, {gpu}"
    return flops / (machine_ceiling(home, trial.resources.threads) * ASSUMED_MFU), "from FLOPs"


def _missing(plan: Plan, folder: TrialFolder, trial: PlannedTrial) -> int:
    done, saved = folder.evaluations(), folder.saved_steps() if folder.state() == "done" else None
    return sum(evaluation_id(e) not in done for e in of_trial(plan.spec.evaluate, trial.fields, saved))
