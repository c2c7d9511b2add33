"""Fields that had another name, or are gone: refused in specs with what to write, read in records."""

from __future__ import annotations

from typing import Any

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
_SECTIONS = {*RENAMED, *(section for section, _ in RENAMED_VALUES)}


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


def present_fields(recorded: Any) -> Any:
    """Recorded sections of a trial (section -> field -> value) under today's names; what is no section stays as it is."""
    found = dict(recorded) if isinstance(recorded, dict) else recorded
    for section in _SECTIONS:
        values = found.get(section) if isinstance(found, dict) else None
        if isinstance(values, dict):
            names = RENAMED.get(section, {})
            void = {name: value for name, (value, _) in REMOVED.get(section, {}).items()}
            values = {n: v for n, v in values.items() if n not in void or v != void[n]}
            values = {names.get(name, name): value for name, value in values.items()}
            found[section] = {name: present_value((section, name), v) or v for name, v in values.items()}
    return found
