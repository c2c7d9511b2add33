"""Fields of the images: source, split, size and storage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.part_fields import Choice, PartSection, is_foreign


class Data(PartSection):
    """Where the images come from and how they are split."""

    source: Annotated[str, Choice("data_source")] = "digits"
    """`digits`: scikit-learn's 1,797 8x8 digits. `idx`: MNIST's format. `parquet`: the Hugging Face image layout. `folder`: one sub-folder per class as in ImageNet, StyleGAN's `dataset.json`, or images without labels. `datasets`: the data set `hub`, read with the library `datasets`."""
    path: str | None = None
    """Folder of the files, relative to the spec file. Not part of a trial's identity; `name` is."""
    hub: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    """Name on the Hugging Face Hub, `owner/name` (`datasets`)."""
    image_column: str = Field("image", min_length=1, max_length=200)
    """Column of the images (`parquet`, `datasets`)."""
    label_column: str | None = Field("label", min_length=1, max_length=200)
    """Column of the class numbers (`parquet`, `datasets`); null if the images have no labels."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the data set. Default: the folder's name, the name on the Hub, or the source."""
    revision: str = Field("1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Revision of the data set. Change it when the images change."""
    holdout: float = Field(0.22, gt=0, lt=1)
    """Fraction of every class that is held out, if the data has no test split (ours)."""
    size: int | None = Field(None, ge=2, le=1024)
    """Images are resized so that their shorter side has this many pixels, antialiased (box halving, then bicubic, as in ADM). Default: no resizing."""
    crop: Literal["none", "centre"] = "none"
    """`centre`: images are cropped to their central square."""
    background: Literal["white", "grey", "black"] = "white"
    """Colour behind transparent pixels (`folder`, `parquet`, `datasets`)."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be read or does not have 8 bits per channel: `skip` leaves it out and reports it (`folder`, `parquet`, `datasets`)."""
    memory: Literal["auto", "resident", "stream"] = "auto"
    """`resident`: decoded once and stored in memory as uint8. `stream`: decoded from disk for every step. `auto`: streamed if they would take more than 2 GiB. Images and their order are the same."""
    workers: int = Field(4, ge=0, le=256)
    """Threads that decode images; 0 decodes in the trial's main thread."""

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
            raise ValueError(f"path: source {self.source!r} needs the folder that holds its files")
        if self.source == "datasets" and self.hub is None:
            raise ValueError("hub: source 'datasets' needs a name on the Hugging Face Hub, such as ylecun/mnist")
        return self

    @model_validator(mode="after")
    def _fields_of_the_source(self) -> Data:
        images = ("parquet", "folder", "datasets")
        for field, sources in (
            ("hub", ("datasets",)),
            ("image_column", ("parquet", "datasets")),
            ("label_column", ("parquet", "datasets")),
            ("damaged", images),
            ("background", images),
        ):
            if self.source not in sources and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field}: source {self.source!r} ignores it; it applies to {' and '.join(sources)}")
        if self.memory == "stream" and self.source not in images:
            raise ValueError(f"memory: source {self.source!r} is always resident; only {', '.join(images)} stream")
        return self
