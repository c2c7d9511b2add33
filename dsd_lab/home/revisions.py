"""History of a sweep: every revision of its settings, its trials, and the times and command lines of the requests.

`manifest.json` holds the latest request, `revisions.json` all of them. Nothing is ever removed from the history, so
that `gc` never offers a trial that an earlier request named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.home.record_types import FORMAT, DamagedRecord
from dsd_lab.home.sweep_records import Asked, Manifest, Revision, Revisions, Settings

_FILE = "revisions.json"
_MAX_SHOWN, _MAX_VALUE = 6, 80
"""Changed settings in a line, and characters of a value."""


def record_revision(
    sweep: Path, before: Manifest | None, manifest: Manifest, trials: list[str], command: str | None
) -> str | None:
    """Add a request to a sweep's history. The caller holds the manifest's lock.

    Args:
        sweep: folder of the sweep.
        before: the last manifest; None where there is none.
        manifest: of the request.
        trials: ids that the request names.
        command: command line of the request.

    Returns:
        A line on the changes; None where the settings are the last recorded ones.

    Raises:
        BadInput: the history is damaged, or newer than this program.
    """
    history = revisions(sweep)
    if not history and before is not None:  # recorded by a version without history
        runs = [Asked(at=before.run_at, command=None)]
        trials_before = [*before.ids, *before.kept]
        history.append(Revision(number=1, changes=None, settings=_settings(before), trials=trials_before, runs=runs))
    settings = _settings(manifest)
    changed = _changes(history[-1].settings, settings) if history else None
    found = next((r for r in history if r.settings == settings), None)
    history = [revision for revision in history if revision is not found]
    if found is None:
        found = Revision(number=len(history) + 1, changes=changed, settings=settings, trials=[], runs=[])
    elif changed:
        changed = f"requested before; {changed}"
    request = Asked(at=manifest.run_at, command=command)
    found = found.changed(trials=list(dict.fromkeys([*found.trials, *trials])), runs=[*found.runs, request])
    Revisions(format=FORMAT, revisions=[*history, found]).write(sweep / _FILE, durable=True)
    return None if not changed else f"revision {found.number} of its settings: {changed}"


def revisions(sweep: Path) -> list[Revision]:
    """All revisions of a sweep, the latest requested last; empty where there is no history.

    Raises:
        BadInput: it is damaged, or newer than this program.
    """
    path = sweep / _FILE
    try:
        found = Revisions.read(path) if path.is_file() else Revisions(revisions=[])
    except DamagedRecord:
        found = None
    if found is None:
        raise BadInput(f"{path}: is damaged, so earlier trials of the sweep are unknown; move it away to continue")
    return found.revisions


def ever_named(root: Path) -> dict[str, set[str]]:
    """Ids of all trials in any revision, by the sweep's key.

    Args:
        root: the home folder.

    Raises:
        BadInput: a history is damaged, or newer than this program.
    """
    folders = [path.parent for path in root.glob(f"sweeps/*/{_FILE}")]
    return {folder.name: {i for r in revisions(folder) for i in r.trials} for folder in folders}


def _settings(manifest: Manifest) -> Settings:
    return Settings(profile=manifest.profile, spec=manifest.spec)


def _changes(old: Settings, new: Settings) -> str:
    """`base.network.width 16 -> 32, seeds [0] -> [0, 1]`; empty where the settings are equal."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    names = [name for name in {**before, **after} if before.get(name, "-") != after.get(name, "-")]
    shown = [f"{name} {before.get(name, '-')} -> {after.get(name, '-')}" for name in names[:_MAX_SHOWN]]
    more = [f"and {len(names) - _MAX_SHOWN} more"] if len(names) > _MAX_SHOWN else []
    return ", ".join([*shown, *more])


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Settings by dotted key, with values as JSON."""
    if isinstance(value, dict) and value:
        parts = [_flat(v, f"{path}.{k}" if path not in ("", "spec") else str(k)) for k, v in value.items()]
        return {name: text for part in parts for name, text in part.items()}
    text = json.dumps(value)
    return {path: text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."}
