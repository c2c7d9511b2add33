"""Remove host and user names and absolute paths from an export, for anonymous review."""

from __future__ import annotations

import getpass
import platform
import re
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?<![\w.:/])(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^/\\\s:;,'\"()]+[/\\])+([^/\\\s:;,'\"()]*)")
_DROPPED = ("pid", "devices")
HIDDEN = "anonymous"


def anonymous(content: Any, hosts: frozenset[str], roots: tuple[Path, ...] = ()) -> Any:
    """JSON without process ids, host names and user names. Absolute paths are cut to their last part.

    Args:
        content: of a file. A data folder keeps its name, which is part of the trial's id.
        hosts: machine names to hide wherever they occur.
        roots: folders whose paths are replaced first: a path within a sentence may contain spaces.
    """
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in _DROPPED}
        return {key: HIDDEN if key == "host" else anonymous(value, hosts, roots) for key, value in kept.items()}
    if isinstance(content, list):
        return [anonymous(value, hosts, roots) for value in content]
    return _text(content, hosts, roots) if isinstance(content, str) else content


def _text(text: str, hosts: frozenset[str], roots: tuple[Path, ...]) -> str:
    if Path(text).is_absolute() and "\n" not in text and Path(text).name:
        return without_names(Path(text).name, hosts)
    return without_names(_PATH.sub(r"\1", without_roots(text, roots)), hosts)


def without_roots(text: str, roots: tuple[Path, ...]) -> str:
    """Text with paths below `roots` made relative."""
    for root in roots:
        text = text.replace(f"{root}/", "").replace(str(root), root.name)
    return text


def without_names(text: str, hosts: frozenset[str], roots: tuple[Path, ...] = ()) -> str:
    """Source text without names of machines and of the user. Other paths than those below `roots` stay."""
    text = without_roots(text, roots)
    for name in hosts:
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", HIDDEN, text)
    return text


def names_of(hosts: set[str]) -> frozenset[str]:
    """Names of the machines that trained, of this machine and of its user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = ""
    return frozenset({*hosts, platform.node(), *({user} if user != "root" else ())} - {""})
