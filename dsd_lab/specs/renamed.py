"""Fields that had another name, or are gone: refused in specs with what to write, read in records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Trial

RENAMED: dict[str, dict[str, str]] = {
    "training": {
        "accumulate": "grad_accum_steps",
        "recompute": "activation_checkpointing",
        "more_emas": "extra_ema_decays",
        "flow_steps": "noise_draws",
    },
}
"""Section -> earlier name -> today's."""
RENAMED_VALUES: dict[tuple[str, str], dict[str, str]] = {("optimiser", "schedule"): {"tail": "wsd"}}
"""(Section, field) -> earlier value -> today's."""


REMOVED: dict[str, dict[str, tuple[Any, str]]] = {
    "training": {"cuda_graphs": (False, "no GPU has run CUDA graphs; remove the key (`compile` fuses kernels)")},
}
"""Section -> field that is gone -> the value that says the same as no field, and why it is gone."""


def gone(path: tuple[str, ...]) -> str | None:
    """Why a field is gone; None where there never was one."""
    *inside, key = path
    known = REMOVED.get(inside[-1], {}) if inside else {k: v for keys in REMOVED.values() for k, v in keys.items()}
    return known[key][1] if key in known else None


def present_key(path: tuple[str, ...]) -> str | None:
    """Today's key path of an earlier one, such as `training.grad_accum_steps`; None where it was never renamed."""
    *inside, key = path
    section = inside[-1] if inside else next((name for name, keys in RENAMED.items() if key in keys), "")
    new = RENAMED.get(section, {}).get(key)
    return None if new is None else f"{section}.{new}"


def present_value(path: tuple[str, ...], value: Any) -> str | None:
    """Today's name of an earlier value of a field; None where it was never renamed."""
    known = RENAMED_VALUES.get((path[-2], path[-1]), {}) if len(path) > 1 else {}
    return known.get(value) if isinstance(value, str) else None


def present_fields(recorded: dict[str, Any]) -> dict[str, Any]:
    """Recorded sections of a trial (section -> field -> value) under today's names; what is no section stays as it is."""
    found: dict[str, Any] = {}
    for section, values in recorded.items():
        if isinstance(values, dict):
            names = RENAMED.get(section, {})
            void = {name: value for name, (value, _) in REMOVED.get(section, {}).items()}
            values = {n: v for n, v in values.items() if n not in void or v != void[n]}
            values = {names.get(name, name): value for name, value in values.items()}
            for name, value in values.items():
                values[name] = present_value((section, name), value) or value
        found[section] = values
    return found


def present_record(content: dict[str, Any]) -> dict[str, Any]:
    """A record that holds `fields` or `canonical` (`trial.json`, a manifest's trial), with these under today's names."""
    sections = {key: content[key] for key in ("fields", "canonical") if isinstance(content.get(key), dict)}
    return content | {key: present_fields(value) for key, value in sections.items()}


def present_manifest(content: dict[str, Any]) -> dict[str, Any]:
    """A sweep's manifest with the fields of its trials under today's names."""
    return content | {"trials": [present_record(entry) for entry in content["trials"]]}


def recorded_trial(record: dict[str, Any]) -> Trial:
    """The trial that a `trial.json` of any schema version describes.

    Raises:
        KeyError: the record has no fields.
        ValidationError: they are not those of a trial.
    """
    from dsd_lab.specs.trial import Trial

    return Trial.model_validate(present_record(record)["fields"])
