"""Copies of plug-in sources, `plugins/<digest>/<name>.py`, for workers on other nodes and for exports.

Nothing here runs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_atomic
from dsd_lab.home.home import Home
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.specs import registry
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial


def kept_path(home: Home, name: str, digest: str) -> Path:
    """Path of the copy of a single-file plug-in."""
    return home.root / "plugins" / digest / f"{name}.py"


def keep_plugins(home: Home) -> list[dict[str, Any]]:
    """Copy the sources of loaded plug-ins. Returns the arguments for `specs.plugins.load_kept` in another process."""
    found = []
    for plugin in registry.plugins.values():
        given = plugin.module or ""
        if plugin.source:
            path = kept_path(home, plugin.name, plugin.digest)
            # What lies there may have come with an import, and another source can be found that has the same digits.
            if not path.is_file() or path.is_symlink() or path.read_bytes() != plugin.source:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, plugin.source, durable=True)
            given = given or str(path.resolve())
        found.append({"name": plugin.name, "given": given, "digest": plugin.digest})
    return found


def loaded_digests() -> dict[str, str]:
    """Digests of the loaded plug-ins by name."""
    return {plugin.name: plugin.digest for plugin in registry.plugins.values()}


def recorded_fields(description: TrialRecord, home: Path) -> Trial:
    """The fields of a recorded trial, whose plug-ins must be loaded.

    Args:
        description: the trial's record.
        home: the home folder, which holds copies of plug-in sources.

    Raises:
        BadInput: a plug-in of the trial is not loaded, or in another version (the message says which option loads it);
        or the fields are invalid in this version of dsd-lab.
    """
    for key, digest in description.canonical.get("plugins", {}).items():
        kind, _, name = key.partition("/")
        part = registry.find_plugin_part(kind, name)
        if part is None or part.digest != digest:
            owners = description.provenance.plugins.items()
            kept = [str(p) for n, d in owners if (p := home / "plugins" / d / f"{n}.py").is_file()]
            cure = (
                f"give --plugin {' --plugin '.join(kept)}" if kept else "give the plug-in that defines it with --plugin"
            )
            if kept and (Home(home).trial(description.id).imported() or (home / "export.json").exists()):
                cure += "; that is code of others, which came with an import: read it before you run it"
            what = (
                "is not loaded" if part is None else f"at {part.where} is another version than the one that trained it"
            )
            raise BadInput(f"trial {description.id}: its {kind} {name!r} {what}; {cure}")
    return description.trial


def planned_again(description: TrialRecord, fields: Trial) -> PlannedTrial:
    """A recorded trial in the form in which its sweep planned it."""
    d = description
    return PlannedTrial(d.id, d.variant, d.seed, fields, d.point, d.overrides)
