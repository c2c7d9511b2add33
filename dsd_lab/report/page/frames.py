"""Pictures over training, for the page's slider."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np

from dsd_lab.files.image_files import DamagedImage, grid_bytes
from dsd_lab.report.groups import Group
from dsd_lab.report.page.page import Frames
from dsd_lab.report.results import Result

_KINDS = (
    ("reconstruction", "Reconstructions over training: held-out images and their reconstructions by the averaged weights."),
    ("samples", "Samples over training: all variants start from the same noise and labels."),
)  # fmt: skip
_NAME = re.compile(r"(?P<kind>\w+)[%+]step[%+](?P<step>\d+)[%+].*\.png")
_MAX_GROUPS = 12
_MAX_STEPS = 9
_MAX_DIGITS = 18
_MAX_BYTES = 6_000_000
"""Maximum size of all pictures of a kind, since the page is one file."""


def frames_of(groups: list[Group]) -> list[Frames]:
    """Frames of every kind of picture that some trial drew at two or more steps; one frame per step."""
    found = [_frames(groups, kind, caption) for kind, caption in _KINDS]
    return [f for f in found if f is not None]


def _frames(groups: list[Group], kind: str, caption: str) -> Frames | None:
    drawn = [(g, *first) for g in groups if (first := _first(g, kind)) is not None]
    shown = drawn[:_MAX_GROUPS]
    every = sorted({step for _, _, pictures in shown for step in pictures})
    count = min(len(every), _MAX_STEPS)
    while count >= 2:
        steps = [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)]
        if sum(p[s].stat().st_size for _, _, p in shown for s in steps if s in p) <= _MAX_BYTES:
            break
        count -= 1
    else:
        return None
    labels = [f"{g.name}, seed {r.seed}" + ("" if r.finished else f" ({r.state})") for g, r, _ in shown]
    shots = [
        [(label, _inline(r, p[s]) if s in p else "") for label, (_, r, p) in zip(labels, shown, strict=True)]
        for s in steps
    ]
    left = f" {len(shown)} of {len(drawn)} rows of the tables." if len(drawn) > len(shown) else ""
    return Frames(kind, f"{caption}{left}", steps, shots)


def _first(group: Group, kind: str) -> tuple[Result, dict[int, Path]] | None:
    """The first seed with this kind of picture, and its pictures by step; finished trials come first."""
    for result in sorted(group.results, key=lambda r: (not r.finished, r.seed)):
        pictures = _by_step(result, kind)
        if pictures:
            return result, pictures
    return None


def _by_step(result: Result, kind: str) -> dict[int, Path]:
    if result.folder is None:
        return {}
    found: dict[int, Path] = {}
    for path in sorted((result.folder / "images").glob(f"{kind}*.png")):
        name = _NAME.fullmatch(path.name)
        if name is not None and name["kind"] == kind and len(name["step"]) <= _MAX_DIGITS and path.is_file():
            found.setdefault(int(name["step"]), path)
    return found


def _inline(result: Result, path: Path) -> str:
    """A data URL; empty if the picture is damaged."""
    try:
        return "data:image/png;base64," + base64.b64encode(grid_bytes(path)).decode()
    except DamagedImage as damage:
        result.unreadable.append(f"{path.name}: {damage}")
        return ""
