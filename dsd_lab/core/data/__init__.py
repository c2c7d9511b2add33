"""Image data sets: read, split into training and held-out images, and kept in memory or streamed.

A new data source is one function that returns a `DataSet`, registered under a name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_lab.core.data.assembly import Found, glanced
from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.digits import load_digits
from dsd_lab.core.data.folder import find_folder, load_folder
from dsd_lab.core.data.hub import find_hub, load_hub
from dsd_lab.core.data.idx import load_idx
from dsd_lab.core.data.idx_files import idx_set
from dsd_lab.core.data.parquet import find_parquet, load_parquet
from dsd_lab.core.data.parquet_files import holds_training
from dsd_lab.core.data.prepared import MANIFEST, load_prepared
from dsd_lab.core.data.splits import BATCHES_AHEAD, Images, Split, StreamedImages
from dsd_lab.core.data.tar_shards import find_tar, load_tar
from dsd_lab.core.data.zip_file import find_zip, load_zip
from dsd_lab.errors import BadInput
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

__all__ = [
    "BATCHES_AHEAD",
    "FINDERS",
    "SOURCES",
    "DataSet",
    "Images",
    "Split",
    "StreamedImages",
    "glance",
    "load_data",
    "source_of",
]


def _data_set(found: Any, *given: Any) -> str | None:
    return None if isinstance(found, DataSet) else f"gives a {type(found).__name__}, not a DataSet"


SOURCES = Parts("data_source", check=_data_set)
"""(section `data`, cache folder for surveys of streamed images, or None) -> DataSet."""
SOURCES.add("digits")(load_digits)
SOURCES.add("idx")(load_idx)
SOURCES.add("parquet")(load_parquet)
SOURCES.add("folder")(load_folder)
SOURCES.add("datasets")(load_hub)
SOURCES.add("zip")(load_zip)
SOURCES.add("tar")(load_tar)
SOURCES.add("prepared")(load_prepared)
FINDERS: dict[str, Callable[[Data], Found]] = {
    "parquet": find_parquet,
    "folder": find_folder,
    "datasets": find_hub,
    "zip": find_zip,
    "tar": find_tar,
}
"""Sources that can be streamed -> function that lists their images without decoding them."""


def load_data(spec: Data, cache: Path | None = None) -> DataSet:
    """Load the data set that a spec names.

    Args:
        spec: source, place and preparation.
        cache: folder for surveys of streamed images; None repeats the survey.

    Raises:
        BadInput: files are missing or damaged, or images differ in size; the message names them.
        NoResources: the disk has no space for the files that streaming needs.
    """
    found: DataSet = SOURCES.bound(spec.source, spec)(spec, cache)
    return found


def glance(spec: Data) -> dict[str, Any] | None:
    """Facts of a data set that would be streamed, without decoding more than one image; None if it stays in memory.

    Raises:
        BadInput: as `load_data`, for faults of the layout, the labels and the first image.
    """
    find = FINDERS.get(spec.source)
    return None if find is None else glanced(spec, find(spec))


def source_of(folder: Path) -> str:
    """The source that can read a folder or a `.zip` file."""
    if folder.is_file():
        return "zip"
    if (folder / MANIFEST).is_file():
        return "prepared"
    if any(folder.glob("*.tar")):
        return "tar"
    if holds_training(folder):
        return "parquet"
    try:
        return "idx" if idx_set(folder).files else "folder"
    except BadInput:  # several sets, or files in a deeper folder: `load_idx` refuses them with a message
        return "idx"
