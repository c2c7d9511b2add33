"""A spec as it was run: one file without `extends`, profiles and overrides, with the same trials and ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lab.specs.shipped import paths_begin_at
from dsd_lab.specs.sources import named_paths
from dsd_lab.specs.sweep import Plan


def resolved_spec(plan: Plan) -> dict[str, Any]:
    """The content of a spec file that gives a plan's trials by itself.

    Overrides of every trial (`--set training.steps=100`) are merged into base and variants, grid axes that they replace
    are removed, the profile is applied, and paths are absolute.
    """
    content = plan.spec.model_dump(mode="json", by_alias=True, exclude={"data_from"})  # only a note
    # A default control need not be a variant; an explicit one must be.
    content["report"] = plan.spec.report.model_dump(mode="json", exclude_unset=True)
    axes = {key for trial in plan.trials for key in trial.point}
    known = {place: path for trial in plan.trials for place, path in _written(plan, trial.fields).items()}
    content["base"] = _absolute(_merged(content["base"], plan.everywhere), known, plan.path)
    content["variants"] = {
        name: _absolute(_merged(over, plan.everywhere), known, plan.path) for name, over in content["variants"].items()
    }
    content["grid"] = {key: values for key, values in content["grid"].items() if key in axes}
    for key, values in content["grid"].items():
        section, _, name = key.partition(".")
        content["grid"][key] = [_absolute({section: {name: v}}, known, plan.path)[section][name] for v in values]
    content["profile"], content["profiles"] = None, {}
    return content


def _written(plan: Plan, fields: Any) -> dict[tuple[str, str, str], str]:
    return {(section, name, path): path for (section, name), path in named_paths(fields).items()}


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        there = both.get(key)
        both[key] = _merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return both


def _absolute(sections: dict[str, Any], known: dict[tuple[str, str, str], str], path: Path) -> dict[str, Any]:
    """Sections with the absolute paths that trials read."""
    found = {}
    for section, fields in sections.items():
        found[section] = fields
        if not isinstance(fields, dict):
            continue
        found[section] = {}
        for name, written in fields.items():
            place = str(_place(path, written)) if isinstance(written, str) else ""
            found[section][name] = known.get((section, name, place), written)
    return found


def _place(path: Path, written: str) -> Path:
    try:
        place = paths_begin_at(path) / Path(written).expanduser()
        return place.parent.resolve() / place.name
    except (OSError, RuntimeError, ValueError):
        return Path(written)
