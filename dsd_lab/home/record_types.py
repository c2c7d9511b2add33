"""Types that the records of a home folder share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dsd_lab.home.names import METRIC, SWEEP_KEY, TRIAL_ID, is_date

Key = Annotated[str, Field(pattern=rf"^{SWEEP_KEY}$")]


TrialId = Annotated[str, Field(pattern=rf"^{TRIAL_ID}$")]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


Text = Annotated[str, Field(max_length=10_000)]


Metric = Annotated[str, Field(pattern=rf"^{METRIC}$")]


PluginDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


Number = Annotated[float, Field(allow_inf_nan=False)]


Count = Annotated[int, Field(ge=0, lt=2**63)]


Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]


def _is_date(value: float) -> float:
    if value and not is_date(value):
        raise ValueError(f"{value:g} is no date between 2000 and 2100, in seconds since 1970")
    return value


Date = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_is_date)]
"""Seconds since 1970; 0 where it is not known."""


class Record(BaseModel):
    """What a file must hold; it may hold more, which nothing reads."""

    model_config = ConfigDict(strict=True, frozen=True)
