"""Find a recorded sweep or trial by what the user typed."""

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

_MIN_ID_PREFIX = 6
"""A match of so many characters with an id wins over variant names."""
_CANDIDATES = 6
"""Trials that a message lists where a name is ambiguous."""


def manifest_of(plan: Plan) -> Manifest:
    """The manifest of a planned sweep."""
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


class NoSweep(BadInput):
    """A sweep has not been run in this home folder."""


def find_manifests(home: Home, name: str | None) -> list[Manifest]:
    """Recorded sweeps that match a spec file or a sweep's name, the latest run last; None matches all.

    Raises:
        NoSweep: nothing is recorded, or nothing under that name.
    """
    manifests = home.manifests()
    if not manifests:
        raise NoSweep(f"no sweep has been run in {home.root}; run `dsd-lab sweep SPEC` first, or give its --home")
    if name is None:
        return list(manifests.values())
    wanted = load_sweep(Path(name)).spec.name if name.endswith((".yaml", ".yml")) else name
    found = [m for m in manifests.values() if wanted in (m.name, m.key)]
    if not found:
        raise NoSweep(f"no sweep {wanted!r} has been run in {home.root}{did_you_mean(wanted, list(manifests))}")
    return found


def find_manifest(home: Home, name: str | None, profile: str | None) -> Manifest:
    """The recorded sweep that matches a spec file or a sweep's name; the latest run where several do.

    Raises:
        NoSweep: nothing is recorded, or nothing under that name.
    """
    candidates = find_manifests(home, name)
    if profile is not None:
        candidates = [m for m in candidates if m.profile == profile]
        if not candidates:
            raise NoSweep(f"--profile {profile}: not run yet in {home.root}; run `dsd-lab sweep` with it first")
    return candidates[-1]


def find_trial(home: Home, text: str) -> TrialFolder:
    """The only trial whose id begins with `text`, or whose name is `text` or contains all of its words.

    A trial's name is its sweep, variant, grid point and seed, such as `naive lr=0.001 s0`.

    Raises:
        BadInput: no trial matches, or several do.
    """
    begins = {p.name for p in home.root.glob(f"trials/{text}*")} if text.isalnum() else set()
    if len(begins) == 1 and len(text) >= _MIN_ID_PREFIX:
        return home.trial(begins.pop())
    names = _trial_names(home)
    called = {i for i, words in names.items() if text.split() and set(text.split()) <= {*words, " ".join(words[1:])}}
    begins |= {i for i in names if text and i.startswith(text)}  # of trials that were not started
    found = sorted(begins | called, key=lambda i: (names.get(i, []), i))
    if len(found) == 1:
        return home.trial(found[0])
    if not found:
        near = did_you_mean(text, dict.fromkeys(n for words in names.values() for n in (words[1], " ".join(words[1:]))))
        meant = near if "did you mean" in near else "; `dsd-lab status` lists them"
        raise BadInput(f"{text}: no such trial in {home.root}{meant}")
    shown = [f"{i} ({' '.join(names[i])})" if i in names else i for i in found[:_CANDIDATES]]
    more = f" and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
    raise BadInput(f"{text}: {len(found)} trials match: {', '.join(shown)}{more}; give an id or more of the name")


def _trial_names(home: Home) -> dict[str, list[str]]:
    """By id: the sweep and the words of the name. Of several sweeps, the latest run counts."""
    names: dict[str, list[str]] = {}
    for key, manifest in home.manifests().items():
        entries = {entry.id: entry.name for entry in manifest.trials}
        for alone in set(manifest.kept) - entries.keys():
            described = home.trial(alone).description()
            entries[alone] = "" if described is None else described.name
        names |= {i: [key, *name.split()] for i, name in entries.items() if name}
    return names
