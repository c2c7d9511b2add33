"""Records of what was measured on machines, in the home folder's cache: `benchmarks.json` and `ceilings.json`.

Both are mappings whose keys are not known in advance. As caches they are read with `known`: a damaged file counts as
missing, and the next measurement replaces it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from dsd_lab.home.record_types import Code, Date, Record, Seconds

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Events(Record):
    """Seconds of what a trial does between steps."""

    record: Seconds
    probe: Seconds
    images: Seconds
    checkpoint: Seconds


class Figure(Record):
    """Speed of a trial on one device, as `dsd-lab bench` measured it."""

    step: _Positive
    """Seconds per step."""
    events: Events
    efficiency: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}$")], _Positive] = {}
    """Number of processes -> their speed together, over their number times that of one."""
    code: Code | None = None
    measured_at: Date = 0.0


class Benchmarks(Record):
    """`benchmarks.json`: shape and threads of a trial -> device -> figure."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Figure]]
    format: int = 1

    @property
    def figures(self) -> dict[str, dict[str, Figure]]:
        """Shape and threads -> device -> figure."""
        return self.__pydantic_extra__


class Ceilings(Record):
    """`ceilings.json`: processor and threads -> FLOP/s of float32 matrix products."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Positive]
    format: int = 1

    @property
    def flops_per_second(self) -> dict[str, float]:
        """Processor and threads -> FLOP/s."""
        return self.__pydantic_extra__
