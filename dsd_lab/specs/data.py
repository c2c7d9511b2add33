"""Fields of the images: source, split, size and storage."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.part_fields import Choice, PartSection, is_foreign

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a data set may be called."""
PREPARED_MANIFEST = "prepared.json"
"""What `dsd-lab prepare` writes last: a folder that has it is whole."""


class Data(PartSection):
    """Where the images come from and how they are split."""

    source: Annotated[str, Choice("data_source")] = "digits"
    """`digits`: scikit-learn's 1,797 8x8 digits. `idx`: MNIST's format. `parquet`: the Hugging Face image layout. `folder`: one sub-folder per class as in ImageNet, StyleGAN's `dataset.json`, or images without labels. `datasets`: the data set `hub`, read with the library `datasets`. `zip`: a `.zip` file with images as in a folder. `tar`: shards in WebDataset's layout. `prepared`: what `dsd-lab prepare` wrote."""
    path: str | None = None
    """Folder of the files (`zip`: the file), relative to the spec file. Not part of a trial's identity; `name` is."""
    hub: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    """Name on the Hugging Face Hub, `owner/name` (`datasets`, and what was prepared from it)."""
    image_column: str = Field("image", min_length=1, max_length=200)
    """Column of the images (`parquet`, `datasets`, and what was prepared from them)."""
    label_column: str | None = Field("label", min_length=1, max_length=200)
    """Column of the class numbers (`parquet`, `datasets`, and what was prepared from them); null if the images have no labels."""
    name: str | None = Field(None, pattern=NAME)
    """Name of the data set. Default: the name on the Hub, the folder's name, or the source."""
    revision: str = Field("1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Revision of the data set. Change it when the images change."""
    holdout: float = Field(0.22, gt=0, lt=1)
    """Fraction of every class that is held out, if the data has no test split (ours)."""
    size: int | None = Field(None, ge=2, le=1024)
    """Images are resized so that their shorter side has this many pixels, antialiased (box halving, then bicubic, as in ADM). Default: no resizing."""
    crop: Literal["none", "centre"] = "none"
    """`centre`: images are cropped to their central square."""
    background: Literal["white", "grey", "black"] = "white"
    """Colour behind transparent pixels (files of images: `folder`, `parquet`, `datasets`, `zip`, `tar`)."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be read or does not have 8 bits per channel: `skip` leaves it out and reports it (files of images: `folder`, `parquet`, `datasets`, `zip`, `tar`)."""
    memory: Literal["auto", "resident", "stream"] = "auto"
    """`resident`: decoded once and stored in memory as uint8. `stream`: decoded from disk for every step; prepared images are mapped into memory instead. `auto`: streamed if they would take more than 2 GiB. Images and their order are the same."""
    workers: int = Field(4, ge=0, le=256)
    """Threads that decode images; 0 decodes in the trial's main thread."""

    @property
    def is_there(self) -> bool:
        """Whether the folder or file that `path` names is there; true where nothing is read from a place of the user's."""
        if self.path is None:
            return True
        return os.path.isfile(self.path) if self.source == "zip" else os.path.isdir(self.path)

    @model_validator(mode="after")
    def _place_where_needed(self) -> Data:
        if self.source == "digits" and self.path is not None:
            raise ValueError("path: digits come with scikit-learn; remove `path`, or name the source it belongs to")
        if self.source == "datasets" and self.path is not None:
            raise ValueError(
                "path: source 'datasets' is named by `hub`; remove `path`, or name the source it belongs to"
            )
        if (
            self.source not in ("digits", "datasets")
            and not is_foreign("data_source", self.source)
            and self.path is None
        ):
            needed = "its .zip file" if self.source == "zip" else "the folder that holds its files"
            raise ValueError(f"path: source {self.source!r} needs {needed}")
        if self.source == "datasets" and self.hub is None:
            raise ValueError("hub: source 'datasets' needs a name on the Hugging Face Hub, such as ylecun/mnist")
        return self

    @model_validator(mode="after")
    def _fields_of_the_source(self) -> Data:
        images = ("parquet", "folder", "datasets", "zip", "tar", "prepared")
        columns = ("parquet", "datasets", "prepared")
        for field, sources in (
            ("hub", ("datasets", "prepared")),
            ("image_column", columns),
            ("label_column", columns),
            ("damaged", images),
            ("background", images),
        ):
            if self.source not in sources and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field}: source {self.source!r} ignores it; it applies to {_listed(sources)}")
        if self.memory == "stream" and self.source not in images:
            raise ValueError(f"memory: source {self.source!r} is always resident; only {', '.join(images)} stream")
        return self


def _listed(names: tuple[str, ...]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
