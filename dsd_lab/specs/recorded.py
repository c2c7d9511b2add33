"""The fields of a recorded trial, in the one place where records become fields again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.specs.registry import find_plugin_part
from dsd_lab.specs.renamed import recorded_trial
from dsd_lab.specs.trial import Trial


def recorded_fields(description: dict[str, Any], home: Path) -> Trial:
    """The fields of a trial's record.

    Raises:
        BadInput: the trial uses a plug-in's part that is not loaded, or another version of it; the line says what to give.
        ValueError: they are not the fields of a trial of this version.
    """
    wanted = (description.get("canonical") or {}).get("plugins") or {}
    owners = (description.get("provenance") or {}).get("plugins") or {}
    for key, digest in wanted.items():
        kind, _, name = key.partition("/")
        part = find_plugin_part(kind, name)
        if part is None or part.digest != digest:
            kept = [str(p) for n, d in owners.items() if (p := home / "plugins" / str(d) / f"{n}.py").is_file()]
            cure = (
                f"give --plugin {' --plugin '.join(kept)}" if kept else "give the plug-in that defines it with --plugin"
            )
            what = "is not loaded" if part is None else f"at {part.where} is not the version that trained it"
            raise BadInput(f"trial {description.get('id')}: its {kind} {name!r} {what}; {cure}")
    return recorded_trial(description)
