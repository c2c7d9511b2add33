"""Load the images of trials once per process, and compare them with the images that other trials were trained on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dsd_lab.files.printable import say
from dsd_lab.home.data_facts import (
    Images,
    Trained,
    declared_in,
    declared_of,
    images_of,
    known_images,
    list_files,
    place_of,
    refuse_other,
    remember_images,
    trained_images,
)
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import TrialFolder
from dsd_lab.planning.data_check import facts_of
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Data, Trial
from dsd_lab.units import duration

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet


_PROGRESS_EVERY = 10.0
"""Seconds between progress lines while images are read; shorter reads print nothing."""


@dataclass
class DataShelf:
    """Datasets that this process has loaded. Trials with the same dataset share it."""

    sets: dict[str, DataSet] = field(default_factory=dict)
    _agreed: set[str] = field(default_factory=set)
    """Declared datasets already compared with the home's other trials; once per process suffices."""

    def get(self, trial: PlannedTrial, home: Home) -> DataSet:
        """The images of a trial, without a comparison with other trials."""
        return self.load(trial.fields.data, home)

    def load(self, data: Data, home: Home) -> DataSet:
        """Load a dataset, and store its facts under the content of its files."""
        key = data.model_dump_json()
        if key not in self.sets:
            from dsd_lab.core.data import load_data  # imports torch
            from dsd_lab.core.data.progress import listening, tell

            if not os.access(home.root, os.W_OK):  # another user's home may be read-only
                self.sets[key] = load_data(data)
                return self.sets[key]
            before = list_files(data)
            with listening(ReadProgress(place_of(data))):
                made = self.sets[key] = load_data(data, home.cache / "data")
                remember_images(home, data, before, facts_of(made), made.files, partial(tell, "files hashed"))
        return self.sets[key]

    def for_training(self, trial: PlannedTrial, home: Home) -> DataSet:
        """The images for training a trial.

        Raises:
            BadInput: a trial with the same declared dataset was trained on different images.
        """
        made, declared, folder = self.get(trial, home), declared_of(trial.fields), home.trial(trial.id)
        here = _images(trial.fields.data, made)
        if any(folder.checkpoints.glob("step-*")):  # without one the trial restarts
            refuse_other(trial.fields, here, _own(folder))
        if declared not in self._agreed:
            refuse_other(trial.fields, here, [t for t in trained_images(home).get(declared, []) if t.trial != trial.id])
            self._agreed.add(declared)
        return made

    def of_trial(self, folder: TrialFolder, fields: Trial, home: Home) -> DataSet:
        """The images that a trial was trained on.

        Raises:
            BadInput: the present images are different.
        """
        made = self.load(fields.data, home)
        refuse_other(fields, _images(fields.data, made), _own(folder))
        return made

    def images(self, data: Data, home: Home) -> Images:
        """Identity of the present images. Decodes them only if their files are unknown."""
        known = None if data.model_dump_json() in self.sets else known_images(home, data, reads=True)
        return known or _images(data, self.load(data, home))


class ReadProgress:
    """Prints the progress of reading images to standard error, if it takes long."""

    def __init__(self, place: str) -> None:
        self._place, self._what, self._began, self._said = place, "", 0.0, 0.0
        self._first = 0

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._said, self._first = what, now, now, done
        elif done > self._first and now - self._said >= _PROGRESS_EVERY:
            self._said, left = now, (now - self._began) * (of - done) / (done - self._first)
            say(f"dsd-lab: {self._place}: {done:,} of {of:,} {what}, about {duration(left)} left", error=True)


def refuse_other_images(home: Home, trials: Iterable[PlannedTrial], shelf: DataShelf) -> None:
    """Refuse to train or combine trials of the same declared dataset on different images.

    Without such trials in the home folder, the images are not read.

    Raises:
        BadInput: a trial of this home was trained on different images with the same declared dataset.
    """
    fields = {trial.fields.data.model_dump_json(exclude={"memory", "workers"}): trial.fields for trial in trials}
    declared: dict[str, list[Trial]] = {}
    for entry in fields.values():
        declared.setdefault(declared_of(entry), []).append(entry)
    trained = trained_images(home)
    for key, entries in declared.items():
        for entry in entries if key in trained else []:
            refuse_other(entry, shelf.images(entry.data, home), trained[key])


def trained_on_others(home: Home, trials: Iterable[PlannedTrial]) -> set[str]:
    """Ids of trials known to be trained on other images than the present ones. Decodes nothing."""
    found, known = set(), dict[str, Images | None]()
    for trial in trials:
        key = trial.fields.data.model_dump_json()
        if key not in known:
            known[key] = known_images(home, trial.fields.data)
        here = known[key]
        if here is not None and any(not here.is_of(own.images) for own in _own(home.trial(trial.id))):
            found.add(trial.id)
    return found


def refuse_changed_images(home: Home, folder: TrialFolder, fields: Trial, shelf: DataShelf) -> None:
    """Refuse to evaluate a trial on other images than it was trained on.

    Raises:
        BadInput: the present images are different.
    """
    refuse_other(fields, shelf.images(fields.data, home), _own(folder))


def _own(folder: TrialFolder) -> list[Trained]:
    described = folder.description()
    return [] if described is None or declared_in(described) is None else [Trained(folder.id, images_of(described))]


def _images(data: Data, made: DataSet) -> Images:
    return Images(made.fingerprint, place_of(data), len(made.train), len(made.holdout), made.class_names)
