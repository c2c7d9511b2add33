"""Fields that had another name under an earlier schema version: refused in specs with today's name, read in records."""

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
            values = {names.get(name, name): value for name, value in values.items()}
            found[section] = {name: present_value((section, name), v) or v for name, v in values.items()}
    return found
