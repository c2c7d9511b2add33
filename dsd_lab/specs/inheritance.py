"""`extends` (spec files that a spec inherits from) and `--set` (overrides from the command line)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.specs.messages import did_you_mean, places_of
from dsd_lab.specs.sources import with_paths_from
from dsd_lab.specs.yaml_document import SET_MARK, Document, KeyPath, one_line, parse_scalar, read_document

MAX_EXTENDS = 20


def read_with_parents(path: Path) -> Document:
    """The document of a spec, merged over those that it extends.

    Raises:
        BadInput: a file cannot be read, or `extends` leads outside the spec's folder, back to itself, or too deep.
    """
    return _inherit(path, resolved_path(path.parent, "the spec's folder"), [])


def _inherit(path: Path, root: Path, seen: list[Path]) -> Document:
    document = read_document(path)
    folder = resolved_path(path.parent, str(path))
    if folder != root:  # paths are relative to the file that contains them, not to the one that extends it
        document = Document(with_paths_from(folder, document.values), document.marks)
    parent = document.values.get("extends")
    if parent is None:
        return document.without("extends")
    where = f"{document.where(('extends',))}: extends"
    if not isinstance(parent, str) or parent == "-":
        raise BadInput(f"{where}: {one_line(repr(parent))} is not the name of a spec file")
    shown = repr(one_line(parent))
    seen = [*seen, resolved_path(path, where)]
    target = resolved_path(path.parent / parent, where)
    if not target.is_relative_to(root):
        raise BadInput(f"{where}: {shown} is outside the folder of the spec; copy it there")
    if target in seen:
        raise BadInput(f"{where}: {shown} leads back to itself")
    if len(seen) > MAX_EXTENDS:
        raise BadInput(f"{where}: more than {MAX_EXTENDS} files deep")
    if not os.path.isfile(target):
        raise BadInput(f"{where}: no such file {shown}")
    return _inherit(path.parent / parent, root, seen).merged(document.without("extends"))


def resolved_path(path: Path, where: str) -> Path:
    """The absolute path, with links resolved.

    Raises:
        BadInput: links form a circle, or the path contains a NUL character.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        raise BadInput(f"{where}: {one_line(str(path))!r} is not a path") from None


def parse_set(text: str, known: list[str]) -> tuple[KeyPath, Any, str]:
    """The key path, the value and the mark of an override.

    Args:
        text: `key.path=value`.
        known: first parts that a key path may have.

    Raises:
        BadInput: the text has another form, an unknown first part, or a value that is not YAML.
    """
    mark = f"{SET_MARK}{one_line(text)}"
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        given = path[0] in known and not equals
        raise BadInput(
            f"{mark}: write {f'{key.strip()}=VALUE' if given else 'key.path=value, such as training.steps=200'}"
        )
    if path[0] not in known:
        places = places_of(path[0])
        meant = f"; did you mean {places[0]!r}?" if places else did_you_mean(path[0], known)
        raise BadInput(f"{mark}: unknown key {one_line(path[0])!r}{meant}")
    return path, parse_scalar(value, mark), mark


def edited(document: Document, path: KeyPath, value: Any, mark: str) -> Document:
    """A spec with one value set. Names of axes, variants and profiles may contain dots.

    Raises:
        BadInput: the path is inside a variant or profile that the spec does not have.
    """
    section, rest = path[0], ".".join(path[1:])
    if section == "grid" and rest:
        path = (section, rest)
    elif section in ("variants", "profiles") and len(path) > 2:
        names = document.values.get(section)
        known = list(names) if isinstance(names, dict) else []
        name = next((n for n in known if f"{rest}.".startswith(f"{n}.")), None)
        if name is None:
            raise BadInput(
                f"{mark}: no {section[:-1]} {one_line(path[1])!r} in this spec{did_you_mean(path[1], known)}"
            )
        path = (section, name, *rest.removeprefix(name).split(".")[1:])
    return document.with_value(path, value, mark)
