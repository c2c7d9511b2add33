"""Suggestions for misspelt names: "did you mean ...?"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from dsd_lab.files.printable import one_line

_NEAR = 0.6
"""Minimum similarity (0 to 1) of a suggested name."""
_EXPERIMENTS = Path("experiments")
"""Folder of specs in a checkout; searched in addition to the folder that was typed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of known names if none is similar."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    if near:
        return f"; did you mean {one_line(near[0])!r}?"
    shown = sorted(one_line(k) for k in known)[:20]
    return f"; known: {', '.join(shown)}{', ...' if len(known) > 20 else ''}" if known else ""


def near_file(path: Path) -> str:
    """`; did you mean 'experiments/x.yaml'?` for a missing spec file; empty if no name is similar."""
    folders = dict.fromkeys((path.parent, _EXPERIMENTS))
    specs = [spec for folder in folders for ending in ("yaml", "yml") for spec in sorted(folder.glob(f"*.{ending}"))]
    near = difflib.get_close_matches(path.stem, [spec.stem for spec in specs], n=1, cutoff=_NEAR)
    found = next((spec for spec in specs if near and spec.stem == near[0]), None)
    return "" if found is None else f"; did you mean {one_line(str(found), 200)!r}?"
