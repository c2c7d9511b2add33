"""Work that is the same for every seed of a variant, done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dsd_lab.specs.trial import Trial

T = TypeVar("T")


def once_for_seeds(make: Callable[[Trial], T]) -> Callable[[Trial], T]:
    """The same function, called once for the fields that the seeds of a variant and grid point share.

    They share one object; a hash of all fields would cost as much as most of what is computed from them.
    """
    found: dict[int, tuple[Trial, T]] = {}

    def known(trial: Trial) -> T:
        if id(trial) not in found:
            found[id(trial)] = trial, make(trial)  # held, so that no other object gets its id
        return found[id(trial)][1]

    return known
