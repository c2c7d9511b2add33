"""The files of a Hugging Face Hub dataset, which lie in the Hub library's cache and not in a folder of the user."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dsd_lab.files.index import listing_of
from dsd_lab.home.data_records import HubFiles
from dsd_lab.specs.trial import Data

_VERSION = re.compile(r"\d+\.\d+\.\d+")
"""The library stores a dataset in NAME/CONFIGURATION/VERSION/REVISION, so each revision has a folder below NAME."""


def remember_hub(folder: Path, data: Data, files: Sequence[str]) -> None:
    """Record which files of the library's cache a dataset was read from."""
    HubFiles(files=list(files)).write(_path(folder, data))


def content_of_hub(folder: Path, data: Data) -> str | None:
    """Key of the cached files of a Hub dataset, all cached revisions included.

    Built from names, sizes and times, since the files can be hundreds of gigabytes.
    """
    known = HubFiles.known(_path(folder, data))
    places = [] if known is None else [Path(name).parents for name in known.files]
    if not places or not all(len(above) > 4 and _VERSION.fullmatch(above[1].name) for above in places):
        return None  # images in memory, or files outside the cache
    sets = {above[3] for above in places}
    try:
        rows = [row for place in sorted(sets) for row in listing_of(place).rows if row[0].endswith(b".arrow")]
    except OSError:
        return None
    return hashlib.sha256(b"\0\n".join(part for row in rows for part in row)).hexdigest()


def _path(folder: Path, data: Data) -> Path:
    return folder / f"hub-{hashlib.sha256(str(data.hub).encode()).hexdigest()[:24]}.json"
