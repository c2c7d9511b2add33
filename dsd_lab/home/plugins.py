"""Sources of plug-ins, kept in the home folder: `plugins/<digest>/<name>.py`, for workers on other nodes and for exports.

Nothing here runs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lab.files.atomic import write_atomic
from dsd_lab.home.home import Home
from dsd_lab.specs import registry


def kept_path(home: Home, name: str, digest: str) -> Path:
    """Where the source of a plug-in of one file is kept."""
    return home.root / "plugins" / digest / f"{name}.py"


def keep_plugins(home: Home) -> list[dict[str, Any]]:
    """Keep the sources of the loaded plug-ins; returns what loads them in another process (`specs.plugins.load_kept`)."""
    found = []
    for plugin in registry.plugins.values():
        given = plugin.module or ""
        if plugin.source:
            path = kept_path(home, plugin.name, plugin.digest)
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, plugin.source, durable=True)
            given = given or str(path.resolve())
        found.append({"name": plugin.name, "given": given, "digest": plugin.digest})
    return found


def loaded_digests() -> dict[str, str]:
    """Digest of every loaded plug-in, by name."""
    return {plugin.name: plugin.digest for plugin in registry.plugins.values()}
