"""Hashes of a plug-in's source: of the whole file, and of the code that one part can depend on."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path


def source_digest(path: Path) -> str:
    """Twelve hexadecimal digits of a file's SHA-256; for an `__init__.py`, of all Python files of its package."""
    if path.name != "__init__.py":
        return _short(path.read_bytes())
    files = sorted(path.parent.rglob("*.py"))
    return _short(b"".join(f.relative_to(path.parent).as_posix().encode() + b"\0" + f.read_bytes() for f in files))


@cache
def part_digest(source: bytes, whole: str, kind: str, name: str) -> str:
    """Digest of the code that a part can depend on: the file without the definitions of other parts.

    So a changed latent metric does not change trials that use a normaliser from the same file. A function or class with
    a decorator `@TABLE.add("name")` is left out, unless the rest mentions its name or the part's name. Comments,
    docstrings and layout do not count. A part of a package depends on the whole package.

    Args:
        source: content of the plug-in's file; empty for a package.
        whole: digest of the whole plug-in.
        kind: kind of the part.
        name: name of the part.
    """
    if not source:
        return whole
    tree = ast.parse(source)
    parts = {i: found for i, node in enumerate(tree.body) if (found := _registered(node)) is not None}
    own = {i for i, found in parts.items() if name in found}
    if not own:  # not registered by a decorator
        return whole
    kept = {i for i in range(len(tree.body)) if i not in parts} | own
    while True:
        mentioned = {word for i in kept for word in _words(tree.body[i])}
        more = {i for i, found in parts.items() if i not in kept and (mentioned & ({*found} | {_name(tree.body[i])}))}
        if not more:
            break
        kept |= more
    text = "\n".join(ast.unparse(_bare(tree.body[i])) for i in sorted(kept))
    return _short(f"{kind}/{name}\n{text}".encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _registered(node: ast.stmt) -> set[str] | None:
    """Names under which a definition is registered; None if it is not, or if it has another decorator too."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not node.decorator_list:
        return None
    names = set()
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(func=ast.Attribute(attr="add"), args=[ast.Constant(value=str(name)), *_]):
                names.add(name)
            case _:
                return None
    return names


def _name(node: ast.stmt) -> str:
    return str(getattr(node, "name", ""))


def _words(node: ast.AST) -> set[str]:
    """Identifiers and strings in a definition."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


def _bare(node: ast.stmt) -> ast.stmt:
    """Without docstrings."""
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        if (
            isinstance(part, ast.FunctionDef | ast.ClassDef)
            and isinstance(body, list)
            and ast.get_docstring(part, False) is not None
        ):
            part.body = body[1:] or [ast.Pass()]
    return node
