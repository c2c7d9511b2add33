"""A hook of mkdocs: links of the pages to files elsewhere in the repository work in the built pages too.

A link such as `../experiments/mnist.yaml` is right on a code host. The built pages hold a copy of the file, so that
they can be read without a network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)")
_PICTURES = (".png", ".svg")


def on_files(files: Files, config: Any) -> Files:
    """Add the files elsewhere in the repository that pages link to."""
    docs = Path(config["docs_dir"])
    linked = {m["path"] for page in docs.glob("*.md") for m in _LINK.finditer(page.read_text(encoding="utf-8"))}
    for path in sorted(linked):
        files.append(File.generated(config, _place(path), abs_src_path=str(docs.parent / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links at the copies."""
    return _LINK.sub(lambda m: f"]({_place(m['path'])}", markdown)


def _place(path: str) -> str:
    """Where the copy lies. Text has the suffix .txt, so that a browser shows it."""
    return f"repository/{path}" if path.endswith(_PICTURES) else f"repository/{path}.txt"
