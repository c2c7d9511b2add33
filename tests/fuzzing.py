"""How long a fuzz runs: a few examples in the tests, and `FUZZ_SECONDS` in all for `make fuzz`, which prints how many it tried."""

import functools
import os
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
PARTS = 10
"""Fuzzed properties that share the time."""


def fuzz(examples: int) -> settings:
    """Settings of a property: so many examples in the tests; in a long run without end and without a fixed seed."""
    if not SECONDS:
        return settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    return settings(max_examples=10**9, derandomize=False, database=None, suppress_health_check=list(HealthCheck))


def timed(test: Callable[..., None]) -> Callable[..., None]:
    """A property that is skipped, with its figures, once its share of a long run is over."""
    began, tried = [], [0]

    @functools.wraps(test)
    def within(*arguments: object, **named: object) -> None:
        began.append(time.monotonic()) if not began else None
        if SECONDS and time.monotonic() - began[0] > SECONDS / PARTS:
            pytest.skip(f"no fault in {tried[0]} examples, {time.monotonic() - began[0]:.0f} s")
        tried[0] += 1
        test(*arguments, **named)

    return within
