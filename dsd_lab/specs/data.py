"""Fields of the images: where they come from, and how they are split, sized and held."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.part_fields import Choice, PartSection, is_foreign


class Data(PartSection):
    """Where the images come from and how they are split."""

    source: Annotated[str, Choice("data_source")] = "digits"
    """`digits`: scikit-learn's 1,797 8x8 digits. `idx`: MNIST's format. `parquet`: the Hugging Face image layout. `folder`: a sub-folder a class, as ImageNet, StyleGAN's `dataset.json`, or images without labels. `datasets`: `hub`, through the library of that name."""
    path: str | None = None
    """Folder of the files, relative to the file that names it. Not part of a trial's identity; `name` is."""
    hub: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    """Name on the Hugging Face Hub, `owner/name` (`datasets`)."""
    image_column: str = Field("image", min_length=1, max_length=200)
    """Column of the images (`parquet`, `datasets`)."""
    label_column: str | None = Field("label", min_length=1, max_length=200)
    """Column of the class numbers (`parquet`, `datasets`); null: the images have no labels."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Declared name of the data set. Default: the folder's name, the name on the Hub, or the source."""
    revision: str = Field("1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Declared revision. Change it when the images change."""
    holdout: float = Field(0.22, gt=0, lt=1)
    """Fraction held out, class by class, where the data has no test split of its own (ours)."""
    size: int | None = Field(None, ge=2, le=1024)
    """Images are resized so that their shorter side has this many pixels, antialiased (box halving, then bicubic, as ADM). Default: as they are."""
    crop: Literal["none", "centre"] = "none"
    """`centre`: images are cut to the square in their middle."""
    background: Literal["white", "grey", "black"] = "white"
    """Colour behind transparent pixels (files of images)."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """What happens at an image that cannot be read, or is not of 8 bits a channel: `skip` leaves it out, named and counted (files of images)."""
    memory: Literal["auto", "resident", "stream"] = "auto"
    """`resident`: decoded once, as uint8. `stream`: decoded from disk ahead of every step. `auto`: streamed where they would take more than 2 GiB. The images and their order are the same."""
    workers: int = Field(4, ge=0, le=256)
    """Threads that decode images; 0: the trial's own."""

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
                raise ValueError(
                    f"{field}: source {self.source!r} has no use for it; it is for {' and '.join(sources)}"
                )
        if self.memory == "stream" and self.source not in images:
            raise ValueError(f"memory: source {self.source!r} is always resident; only {', '.join(images)} stream")
        return self
