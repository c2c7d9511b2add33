"""Sample metrics of plug-ins; the shipped ones share computations and are in `metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsd_lab.specs.part_fields import is_foreign
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Generation


def _number(found: Any, *given: Any) -> str | None:
    return None if isinstance(found, int | float) else f"gives a {type(found).__name__}, not a float"


SAMPLE_METRICS = Parts("sample_metric", check=_number)
"""(samples uint8 [N, C, H, W], labels [N], held-out images uint8 [M, C, H, W]) -> float. Traits: `label`, `digits`."""


def of_plugins(evaluation: Generation, samples: Tensor, labels: Tensor, real: Tensor) -> dict[str, float]:
    """The plug-ins' metrics of an evaluation, by recorded name without settings.

    Args:
        evaluation: its `metrics` name them.
        samples: uint8 [N, C, H, W].
        labels: labels [N] for which the samples were drawn.
        real: held-out images, uint8 [M, C, H, W].
    """
    asked = [name for name in evaluation.measured if is_foreign("sample_metric", name)]
    return {f"sample/{n}": float(SAMPLE_METRICS.bound(n, evaluation)(samples, labels, real)) for n in asked}
