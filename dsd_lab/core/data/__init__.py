"""Image data sets: read, split into training and held-out images, resident in memory or streamed.

A new data set is one function that returns a `DataSet` and one row of `SOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dsd_lab.core.data.dataset import DataSet
from dsd_lab.core.data.digits import load_digits
from dsd_lab.core.data.folder import load_folder
from dsd_lab.core.data.hub import load_hub
from dsd_lab.core.data.idx import load_idx
from dsd_lab.core.data.parquet import load_parquet
from dsd_lab.core.data.splits import BATCHES_AHEAD, Images, Split, StreamedImages

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

__all__ = ["BATCHES_AHEAD", "SOURCES", "DataSet", "Images", "Split", "StreamedImages", "load_data"]

SOURCES: dict[str, Callable[[Data, Path | None], DataSet]] = {
    "digits": load_digits,
    "idx": load_idx,
    "parquet": load_parquet,
    "folder": load_folder,
    "datasets": load_hub,
}


def load_data(spec: Data, cache: Path | None = None) -> DataSet:
    """Load the data set that a spec names.

    Args:
        spec: source, place and preparation.
        cache: folder that keeps what is found out about streamed images; None finds it out anew.

    Raises:
        BadInput: files are missing or damaged, or images differ in size; the message names them.
        NoResources: the disk has no room for what a stream needs.
    """
    return SOURCES[spec.source](spec, cache)
