"""YAML file -> plan: inheritance, profiles, grids, overrides."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsd_lab.errors import BadInput
from dsd_lab.specs.checks import check_evaluations, check_report, check_sources
from dsd_lab.specs.evaluate_list import expanded, with_files
from dsd_lab.specs.identity import trial_ids
from dsd_lab.specs.inheritance import edited, parse_set, read_with_parents, resolved_path
from dsd_lab.specs.messages import complaints, did_you_mean, summary
from dsd_lab.specs.plugins import require
from dsd_lab.specs.shipped import paths_begin_at
from dsd_lab.specs.sources import named_paths, with_paths_from
from dsd_lab.specs.sweep import MAX_TRIALS, Plan, PlannedTrial, Sweep
from dsd_lab.specs.trial import Section, Training, Trial
from dsd_lab.specs.yaml_document import Document, one_line

STEPS_FACTOR = "steps_factor"
"""Key of a variant: a factor on `training.steps`, by which variants of unlike cost train for equal FLOPs on a grid of lengths."""


def load_sweep(path: Path, profile: str | None = None, sets: list[str] | None = None) -> Plan:
    """Read, inherit, override, validate and resolve a spec.

    Args:
        path: the YAML file, or `-` for standard input.
        profile: name of a profile; None: the spec's default.
        sets: `key.path=value` overrides. A path that starts with a section of a trial (`training.steps=100`) overrides
            every trial, after variant and grid, and removes that axis from the grid. Any other path edits the file,
            after the profile (`seeds=[0]`, `variants.naive.optimiser.lr=1e-4`, `grid.training.steps=[10, 20]`).

    Raises:
        BadInput: the spec is not valid. The message is one line with file, line, key, value and what would be right.
    """
    document = read_with_parents(path)
    everywhere, edits = Document({}), []
    known_keys = [*Trial.model_fields, *(f.alias or name for name, f in Sweep.model_fields.items())]
    for text in sets or []:
        key_path, value, mark = parse_set(text, known_keys)
        value = with_paths_from(Path.cwd(), value, key_path)  # relative to the current folder, not the spec's
        if key_path[0] in Trial.model_fields:
            everywhere = everywhere.with_value(key_path, value, mark)
        elif key_path[0] in ("profile", "profiles"):
            document = edited(document, key_path, value, mark)
        else:
            edits.append((key_path, value, mark))
    chosen = profile or document.values.get("profile")
    if chosen is not None:
        profiles = document.values.get("profiles")
        known = list(profiles) if isinstance(profiles, dict) else []
        if chosen not in known:
            where = f"--profile {one_line(chosen)}" if profile else f"{document.where(('profile',))}: profile"
            meant = did_you_mean(str(chosen), known) or "; it has none"
            raise BadInput(f"{where}: no profile {one_line(str(chosen))!r} in this spec{meant}")
        document = document.merged(document.part(("profiles", chosen)).without("profiles", "profile"))
    for edit in edits:
        document = edited(document, *edit)
    document = expanded(document)
    _require(document)
    spec = _validated(document)
    spec = spec.model_copy(update={"evaluate": with_files(spec.evaluate, document, paths_begin_at(path))})
    trials = _resolve(spec, document, everywhere, path)
    return Plan(spec, path, chosen, trials, everywhere.values, tuple(sets or ()))


def _require(document: Document) -> None:
    """Load required plug-ins before their parts are checked; an invalid list is reported by the validation."""
    names = document.values.get("requires")
    for place, name in enumerate(names if isinstance(names, list) else []):
        if isinstance(name, str) and name.isidentifier():
            require(name, document.where(("requires", str(place))))


def _validated(document: Document) -> Sweep:
    try:
        return Sweep.model_validate(document.values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {line: [] for line in complaints(error, Sweep, document)}
        raise BadInput(summary(faults, [])) from None


def _resolve(spec: Sweep, document: Document, everywhere: Document, path: Path) -> list[PlannedTrial]:
    axes = {key: values for key, values in spec.grid.items() if not _holds(everywhere.values, key)}
    factors = (len(spec.variants), *map(len, axes.values()), len(spec.seeds))
    if math.prod(factors) > MAX_TRIALS:
        raise BadInput(
            f"{document.where(('grid',))}: variants x grid x seeds = {' x '.join(map(str, factors))} = {math.prod(factors):,} trials; at most {MAX_TRIALS:,} are planned at once"
        )
    check_report(spec, document)
    base, trials = document.part(("base",)), []
    faults: dict[str, list[str]] = {}
    for variant in spec.variants:
        over = document.part(("variants", variant))
        if not isinstance(over.values.get("why", ""), str):
            raise BadInput(f"{over.where(('why',))}: variants.{variant}.why: {over.values['why']!r} is not text")
        factor = _steps_factor(over, variant)
        over = over.without("why", STEPS_FACTOR)
        under = base.merged(over)
        for places in itertools.product(*(range(len(values)) for values in axes.values())):
            resolved, point = under, {}
            for key, place in zip(axes, places, strict=True):
                mark, point[key] = document.where(("grid", key, str(place))), axes[key][place]
                resolved = resolved.with_value(tuple(key.split(".")), point[key], mark)
            if factor != 1:
                resolved = _lengthened(resolved, factor, document.where(("variants", variant, STEPS_FACTOR)))
            resolved = resolved.merged(everywhere)
            try:
                fields = _with_absolute_paths(Trial.model_validate(resolved.values), resolved, path)
            except ValidationError as error:
                for line in complaints(error, Trial, resolved):
                    faults.setdefault(line, []).append(variant)
                continue
            overrides = {**_flat(over.values), **point}
            trials += [
                PlannedTrial(name, variant, seed, fields, point, overrides)
                for name, seed in zip(trial_ids(fields, spec.seeds), spec.seeds, strict=True)
            ]
    if faults:
        raise BadInput(summary(faults, list(spec.variants)))
    check_sources(trials, document)
    check_evaluations(spec, trials, document)
    return trials


def _steps_factor(over: Document, variant: str) -> float:
    factor = over.values.get(STEPS_FACTOR, 1)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0.01 <= factor <= 100:
        where = f"{over.where((STEPS_FACTOR,))}: variants.{variant}.{STEPS_FACTOR}"
        raise BadInput(f"{where}: {one_line(str(factor))!r} is no number from 0.01 to 100")
    return factor


def _lengthened(resolved: Document, factor: float, mark: str) -> Document:
    """With the steps of base, variant and grid times a factor, rounded; what is no number of steps is refused later."""
    training = resolved.values.get("training", {})
    steps = training.get("steps", Training().steps) if isinstance(training, dict) else None
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        return resolved
    return resolved.with_value(("training", "steps"), max(1, round(factor * steps)), mark)


def _holds(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _with_absolute_paths(fields: Trial, document: Document, spec_path: Path) -> Trial:
    """The trial with absolute paths. The last part is not resolved: a link's name is the name of the data set."""
    sections: dict[str, Section] = {}
    for (section, name), written in named_paths(fields).items():
        where = f"{document.where((section, name))}: {section}.{name}"
        try:
            found = paths_begin_at(spec_path) / Path(written).expanduser()
        except RuntimeError:
            raise BadInput(f"{where}: no such user in {one_line(written)!r}") from None
        if found.name == "..":
            found = resolved_path(found, where)
        absolute = str(resolved_path(found.parent, where) / found.name)
        sections[section] = sections.get(section, getattr(fields, section)).model_copy(update={name: absolute})
    return fields.model_copy(update=sections) if sections else fields


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat
