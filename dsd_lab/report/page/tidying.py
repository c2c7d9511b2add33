"""What a report leaves in its folder: a list of its files, so that the next one removes what it does not write again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_LIST = ".report-files"
_USUAL = ("report.html", "report.md", "tables/*.csv", "tables/*.tex", "figures/*.svg", "figures/*.png")
"""Of reports that kept no list."""


@contextlib.contextmanager
def only_new_files(folder: Path) -> Iterator[None]:
    """Remove the files of the report that was in a folder before, and list those that the block writes.

    Files that no report wrote are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in _written_before(folder):
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()
    others = _files(folder)
    yield
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder) - others)
    (folder / _LIST).write_text("\n".join(names) + "\n")


def _written_before(folder: Path) -> list[Path]:
    known = folder / _LIST
    if known.exists():
        root = folder.resolve()
        listed = [folder / line for line in known.read_text().splitlines() if line]
        return [known, *(p for p in listed if p.resolve().is_relative_to(root))]
    return [path for pattern in _USUAL for path in folder.glob(pattern)] if (folder / "report.html").exists() else []


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
