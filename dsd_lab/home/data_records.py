"""Records of data sets: what was read from their images, and the files of a Hub data set."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dsd_lab.home.record_types import Count, Number, Record, Sha256, Text

Shape = Annotated[list[Count], Field(min_length=3, max_length=3)]
"""Channels, height and width."""


class Facts(Record):
    """What was read from the images of a data set; statistics are in levels 0 to 255."""

    train: Count
    holdout: Count
    classes: Count
    shape: Shape | None = None
    """None in a trial's record of an earlier version."""
    mean: list[Number] = []
    std: list[Number] = []
    min: Count = 0
    max: Count = 255
    train_by_class: list[Count] = []
    holdout_by_class: list[Count] = []
    class_names: list[Text] = []
    holdout_from: Text = ""
    notes: list[Text] = []
    resident: bool = True
    damaged: Count = 0
    damaged_named: list[Text] = []


class DataFacts(Facts):
    """`cache/data/facts-*.json`, and with the fingerprint `cache/data/images-*.json`."""

    shape: Shape
    fingerprint: Sha256 | None = None
    """None where not every image was decoded."""


class HubFiles(Record):
    """`cache/data/hub-*.json`: files of the Hub library's cache that a data set was read from."""

    files: list[str]
