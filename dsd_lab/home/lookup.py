"""Finding a recorded sweep or trial by what the user typed."""

from __future__ import annotations

import time
from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry, Manifest
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.provenance import called_with
from dsd_lab.specs.identity import canonical_fields, evaluation_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.resolved import resolved_spec
from dsd_lab.specs.sweep import Plan
from dsd_lab.specs.trial import SCHEMA_VERSION


def manifest_of(plan: Plan) -> Manifest:
    """What the home folder records of a sweep."""
    canonical = once_for_seeds(canonical_fields)
    return Manifest(
        key=plan.key,
        schema_version=SCHEMA_VERSION,
        name=plan.spec.name,
        profile=plan.profile,
        why=" ".join(plan.spec.why.split()),
        run_at=time.time(),
        spec_path=str(plan.path.resolve()) if str(plan.path) != "-" else "stdin",
        command=called_with(),
        set=list(plan.sets),
        spec=resolved_spec(plan),
        evaluations={evaluation_id(e): e.model_dump() for e in plan.spec.evaluate},
        trials=[
            Entry(
                id=t.id,
                name=t.name,
                variant=t.variant,
                point=t.point,
                seed=t.seed,
                size=str(t.fields.network.size),
                steps=t.fields.training.steps,
                overrides=t.overrides,
                canonical=canonical(t.fields),
                has_denoiser=t.fields.has_denoiser,
            )
            for t in plan.trials
        ],
    )


def find_manifest(home: Home, name: str | None, profile: str | None) -> Manifest:
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
        candidates = [m for m in candidates if wanted in (m.name, m.key)]
        if not candidates:
            raise BadInput(f"no sweep {wanted!r} has been run in {home.root}{did_you_mean(wanted, list(manifests))}")
    if profile is not None:
        candidates = [m for m in candidates if m.profile == profile]
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
