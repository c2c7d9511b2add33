"""What was ever asked of a sweep: every revision of its settings, its trials, and when which command asked for it.

`manifest.json` of a sweep says what was asked last, `revisions.json` beside it what was asked before; nothing is ever
taken out of it, so that no later command makes `gc` offer a trial that an earlier one named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import write_json
from dsd_lab.home.names import is_trial_id

FORMAT = 1
_FILE = "revisions.json"
_SHOWN, _LONGEST = 6, 80
"""Changed settings that a line names, and characters of a value."""


def record_revision(
    sweep: Path, before: dict[str, Any] | None, manifest: dict[str, Any], trials: list[str], command: str | None
) -> str | None:
    """Add what is asked now to a sweep's history; the caller holds the manifest's lock.

    Args:
        sweep: folder of the sweep.
        before: the manifest that stands until now; None where there is none.
        manifest: what is asked now.
        trials: ids that this names.
        command: the command line that asks.

    Returns:
        A line that says what changes; None where the settings are those that stand.

    Raises:
        BadInput: the history is damaged, or newer than this program.
    """
    history = _read(sweep)
    if not history and before is not None:  # recorded by a version that kept no history
        known = [entry["id"] for entry in before["trials"]]
        history.append(_revision(1, before, None, [*known, *before.get("kept", [])]))
    previous = history[-1] if history else None
    settings = _settings(manifest)
    changed = None if previous is None else _changes(previous["settings"], settings)
    found = next((r for r in history if r["settings"] == settings), None)
    if found is None:
        found = _revision(len(history) + 1, manifest, changed, [])
    elif changed:
        changed = f"asked for before; {changed}"
    history = [revision for revision in history if revision is not found]
    found["trials"] = list(dict.fromkeys([*found["trials"], *trials]))
    found["runs"].append({"at": manifest["run_at"], "command": command})
    write_json(sweep / _FILE, {"format": FORMAT, "revisions": [*history, found]}, durable=True)
    return None if not changed else f"revision {found['number']} of its settings: {changed}"


def revisions(sweep: Path) -> list[dict[str, Any]]:
    """Every revision of a sweep, the one that was asked for last at the end; empty where there is no history.

    Raises:
        BadInput: it is damaged, or newer than this program.
    """
    return _read(sweep)


def ever_named(root: Path) -> dict[str, set[str]]:
    """Ids of all trials that any revision of a sweep named, by the sweep's key.

    Args:
        root: the home folder.

    Raises:
        BadInput: a history is damaged, or newer than this program.
    """
    folders = [path.parent for path in root.glob(f"sweeps/*/{_FILE}")]
    return {folder.name: {i for r in _read(folder) for i in r["trials"]} for folder in folders}


def _revision(number: int, manifest: dict[str, Any], changes: str | None, trials: list[str]) -> dict[str, Any]:
    runs = [] if trials == [] else [{"at": manifest["run_at"], "command": None}]
    return {"number": number, "changes": changes, "settings": _settings(manifest), "trials": trials, "runs": runs}


def _settings(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"profile": manifest.get("profile"), "spec": manifest["spec"]}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`base.network.width 16 -> 32, seeds [0] -> [0, 1]`; empty where nothing differs."""
    before, after = _flat(old), _flat(new)
    names = [name for name in {**before, **after} if before.get(name, "-") != after.get(name, "-")]
    shown = [f"{name} {before.get(name, '-')} -> {after.get(name, '-')}" for name in names[:_SHOWN]]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*shown, *more])


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Settings by their dotted keys, values as JSON."""
    if isinstance(value, dict) and value:
        parts = [_flat(v, f"{path}.{k}" if path not in ("", "spec") else str(k)) for k, v in value.items()]
        return {name: text for part in parts for name, text in part.items()}
    text = json.dumps(value)
    return {path: text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."}


def _read(sweep: Path) -> list[dict[str, Any]]:
    path = sweep / _FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and isinstance(version := content.get("format"), int) and version > FORMAT:
        raise BadInput(f"{path}: format {version} is newer than this program reads, which is {FORMAT}; update dsd-lab")
    found = content.get("revisions") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(map(_is_revision, found)):
        raise BadInput(f"{path}: is damaged: which trials the sweep named before cannot be told; move it away to go on")
    return found


def _is_revision(entry: Any) -> bool:
    if not isinstance(entry, dict) or not {"number", "settings", "trials", "runs"} <= entry.keys():
        return False
    trials, runs = entry["trials"], entry["runs"]
    return isinstance(trials, list) and all(map(is_trial_id, trials)) and isinstance(runs, list)
