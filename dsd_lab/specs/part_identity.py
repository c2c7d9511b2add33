"""The contribution of plug-ins' parts to a trial's identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.specs.part_fields import PartSection, is_foreign, kinds_in
from dsd_lab.specs.registry import find_plugin_part


def foreign_parts(section: type[PartSection], values: dict[str, Any]) -> set[tuple[str, str]]:
    """Kind and name of the plug-ins' parts that the fields of a section name."""
    found = set()
    for name, kind in kinds_in(section).items():
        named = values.get(name) or ()
        found |= {(kind, part) for part in ([named] if isinstance(named, str) else named) if is_foreign(kind, part)}
    return found


def settle_parts(section: type[PartSection], values: dict[str, Any], more: Iterable[str] = ()) -> set[tuple[str, str]]:
    """Remove options of parts without effect from a section; returns the section's plug-in parts."""
    found = foreign_parts(section, values)
    used = {part for _, part in found} | set(more)
    options = {part: given for part, given in values.pop("options", {}).items() if part in used}
    if options:
        values["options"] = options
    return found


def digest_of(kind: str, name: str, recorded: Mapping[str, str] | None) -> str:
    """The digest of a plug-in's part: the recorded one, or that of the loaded plug-in.

    Raises:
        BadInput: the plug-in is not loaded.
    """
    if recorded is not None:
        return recorded.get(f"{kind}/{name}", "")
    part = find_plugin_part(kind, name)
    if part is None:
        raise BadInput(f"{kind} {name!r} is of a plug-in that is not loaded; give its file with --plugin")
    return part.digest
