"""Caches results that are the same for every seed of a variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dsd_lab.specs.trial import Trial

T = TypeVar("T")


def once_for_seeds(make: Callable[[Trial], T]) -> Callable[[Trial], T]:
    """The function, cached by the identity of the trial object, which the seeds of a grid point share.

    A hash of all fields would cost as much as most functions.
    """
    found: dict[int, tuple[Trial, T]] = {}

    def known(trial: Trial) -> T:
        if id(trial) not in found:
            found[id(trial)] = trial, make(trial)  # the reference keeps the id from being reused
        return found[id(trial)][1]

    return known
