"""Renamed and removed fields: refused in specs with a hint, accepted in records."""

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
"""Section -> old name -> new name."""
RENAMED_VALUES: dict[tuple[str, str], dict[str, str]] = {("optimiser", "schedule"): {"tail": "wsd"}}
"""(Section, field) -> old value -> new value."""
_SECTIONS = {*RENAMED, *(section for section, _ in RENAMED_VALUES)}


REMOVED: dict[str, dict[str, tuple[Any, str]]] = {
    "training": {"cuda_graphs": (False, "no GPU has run CUDA graphs; remove the key (`compile` fuses kernels)")},
}
"""Section -> removed field -> (value without effect, why it was removed)."""


def gone(path: tuple[str, ...]) -> str | None:
    """Why a field was removed; None if it never existed."""
    *inside, key = path
    known = REMOVED.get(inside[-1], {}) if inside else {k: v for keys in REMOVED.values() for k, v in keys.items()}
    return known[key][1] if key in known else None


def present_key(path: tuple[str, ...]) -> str | None:
    """New key path of an old one, such as `training.grad_accum_steps`; None if it was not renamed."""
    *inside, key = path
    section = inside[-1] if inside else next((name for name, keys in RENAMED.items() if key in keys), "")
    new = RENAMED.get(section, {}).get(key)
    return None if new is None else f"{section}.{new}"


def present_value(path: tuple[str, ...], value: Any) -> str | None:
    """New name of an old value of a field; None if it was not renamed."""
    known = RENAMED_VALUES.get((path[-2], path[-1]), {}) if len(path) > 1 else {}
    return known.get(value) if isinstance(value, str) else None


def present_fields(recorded: Any) -> Any:
    """Recorded fields of a trial (section -> field -> value) with new names; anything else is returned unchanged."""
    found = dict(recorded) if isinstance(recorded, dict) else recorded
    for section in _SECTIONS:
        values = found.get(section) if isinstance(found, dict) else None
        if isinstance(values, dict):
            names = RENAMED.get(section, {})
            void = {name: value for name, (value, _) in REMOVED.get(section, {}).items()}
            values = {n: v for n, v in values.items() if n not in void or v != void[n]}
            values = {names.get(name, name): value for name, value in values.items()}
            for name in (field for place, field in RENAMED_VALUES if place == section and field in values):
                values[name] = present_value((section, name), values[name]) or values[name]
            found[section] = values
    return found
