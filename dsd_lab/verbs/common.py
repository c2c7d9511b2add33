"""What several verbs share: finding the home folder, loading the plan, recording a sweep, what must not go on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.home import Home, TrialFolder
from dsd_lab.specs.auxiliary import NO_FILES, named_backbones
from dsd_lab.specs.complaints import did_you_mean
from dsd_lab.specs.identity import canonical_fields, evaluation_id
from dsd_lab.specs.seeds import once_for_seeds
from dsd_lab.specs.sweep import Plan, load_sweep


def home_of(arguments: argparse.Namespace) -> Home:
    """`--home`, else `DSD_LAB_HOME`, else `runs/` below the current folder."""
    return Home(Path(arguments.home or os.environ.get("DSD_LAB_HOME") or "runs").expanduser())


def program(arguments: argparse.Namespace) -> tuple[str, str]:
    """How to call this program again from this shell, and the `--home` that goes with it."""
    typed = sys.argv[0] if Path(sys.argv[0]).name == "dsd-lab" else f"{sys.executable} -m dsd_lab"
    home = "" if arguments.home is None else f" --home {shlex.quote(arguments.home)}"
    return ("dsd-lab" if shutil.which("dsd-lab") else typed), home


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan of the spec that the arguments name."""
    plan = load_sweep(Path(arguments.spec), arguments.profile, arguments.set)
    only = getattr(arguments, "only", None)
    return plan.only(only) if only else plan


def missing_data(plan: Plan) -> list[str]:
    """Folders of images that the trials name and that are not there."""
    paths = dict.fromkeys(t.fields.data.path for t in plan.trials if t.fields.data.path is not None)
    return [path for path in paths if not Path(path).is_dir()]


def missing_weights(plan: Plan) -> list[str]:
    """`key: no such file PATH` for each file of a timm model's weights that the trials name and that is not there.

    Raises:
        BadInput: timm knows no model of a name.
    """
    every = dict.fromkeys(named for t in plan.trials for named in named_backbones(t.fields).values())
    for named in every:
        from dsd_lab.core.backbones import check_name  # imports torch: only where a model is named

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


def manifest_of(plan: Plan) -> dict[str, Any]:
    """What the home folder records of a sweep."""
    canonical = once_for_seeds(canonical_fields)
    return {
        "key": plan.key,
        "name": plan.spec.name,
        "profile": plan.profile,
        "why": " ".join(plan.spec.why.split()),
        "run_at": time.time(),
        "spec_path": str(plan.path.resolve()) if str(plan.path) != "-" else "stdin",
        "spec": plan.spec.model_dump(mode="json", by_alias=True),
        "evaluations": {evaluation_id(e): e.model_dump() for e in plan.spec.evaluate},
        "trials": [
            {
                "id": t.id,
                "name": t.name,
                "variant": t.variant,
                "point": t.point,
                "seed": t.seed,
                "size": t.fields.network.size,
                "steps": t.fields.training.steps,
                "overrides": t.overrides,
                "canonical": canonical(t.fields),
                "has_denoiser": t.fields.has_denoiser,
            }
            for t in plan.trials
        ],
    }


def find_manifest(home: Home, name: str | None, profile: str | None) -> dict[str, Any]:
    """The recorded sweep that a spec file or a sweep's name means; the one that ran last where several do.

    Raises:
        BadInput: nothing was recorded, or nothing under that name.
    """
    manifests = home.manifests()
    if not manifests:
        raise BadInput(
            f"no sweep has been run in {home.root}; run `dsd-lab sweep SPEC` first, or name its folder with --home"
        )
    candidates = list(manifests.values())
    if name is not None:
        wanted = load_sweep(Path(name), profile).spec.name if name.endswith((".yaml", ".yml")) else name
        candidates = [m for m in candidates if wanted in (m["name"], m["key"])]
        if not candidates:
            raise BadInput(f"no sweep {wanted!r} has been run in {home.root}{did_you_mean(wanted, list(manifests))}")
    if profile is not None:
        candidates = [m for m in candidates if m["profile"] == profile]
        if not candidates:
            raise BadInput(f"--profile {profile}: not run yet in {home.root}; run `dsd-lab sweep` with it first")
    return candidates[-1]


def find_trial(home: Home, prefix: str) -> TrialFolder:
    """The one trial whose id begins like this.

    Raises:
        BadInput: none does, or several do.
    """
    found = sorted(p.name for p in home.root.glob("trials/*") if p.name.startswith(prefix)) if prefix.isalnum() else []
    if len(found) != 1:
        what = (
            f"{len(found)} trials begin so: {', '.join(found[:5])}"
            if found
            else f"no such trial in {home.root}; `dsd-lab status` lists them"
        )
        raise BadInput(f"{prefix}: {what}")
    return home.trial(found[0])


def print_json(content: Any) -> None:
    """JSON on standard output; NaN is refused, since JSON has none."""
    json.dump(content, sys.stdout, indent=1, allow_nan=False)
    print()
