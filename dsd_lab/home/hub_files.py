"""The files of a Hugging Face Hub dataset, which lie in the Hub library's cache and not in a folder of the user."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.files.index import listing_of
from dsd_lab.specs.trial import Data

_VERSION = re.compile(r"\d+\.\d+\.\d+")
"""The library stores a dataset in NAME/CONFIGURATION/VERSION/REVISION, so each revision has a folder below NAME."""


def remember_hub(folder: Path, data: Data, files: Sequence[str]) -> None:
    """Record which files of the library's cache a dataset was read from."""
    write_json(_path(folder, data), {"files": list(files)})


def content_of_hub(folder: Path, data: Data) -> str | None:
    """Key of the cached files of a Hub dataset, all cached revisions included.

    Built from names, sizes and times, since the files can be hundreds of gigabytes.
    """
    files = read_cache(_path(folder, data)).get("files")
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        return None
    sets = {Path(name).parents[3] for name in files if len(Path(name).parents) > 4}
    if not all(len(Path(n).parents) > 4 and _VERSION.fullmatch(Path(n).parents[1].name) for n in files):
        return None  # images in memory, or files outside the cache
    try:
        rows = [row for place in sorted(sets) for row in listing_of(place).rows if row[0].endswith(b".arrow")]
    except OSError:
        return None
    return hashlib.sha256(b"\0\n".join(part for row in rows for part in row)).hexdigest()


def _path(folder: Path, data: Data) -> Path:
    return folder / f"hub-{hashlib.sha256(str(data.hub).encode()).hexdigest()[:24]}.json"
