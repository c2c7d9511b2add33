"""What an export for anonymous review must not say: whose machine it was, and where on it things lay."""

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
    """JSON without process ids, host and user names, and with the last part alone of every absolute path.

    Args:
        content: of a file; a folder of data keeps its name, by which a trial's id knows it.
        hosts: names of machines that are hidden wherever they stand.
        roots: folders whose paths are left out first, since a path in a sentence may hold spaces.
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
    """A text with paths below folders as relative ones."""
    for root in roots:
        text = text.replace(f"{root}/", "").replace(str(root), root.name)
    return text


def without_names(text: str, hosts: frozenset[str], roots: tuple[Path, ...] = ()) -> str:
    """A text of code, whose paths are kept but for those below `roots`, without names of machines and of the user."""
    text = without_roots(text, roots)
    for name in hosts:
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", HIDDEN, text)
    return text


def names_of(hosts: set[str]) -> frozenset[str]:
    """Names of the machines that trained, of this one and of its user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = ""
    return frozenset({*hosts, platform.node(), *({user} if user != "root" else ())} - {""})
