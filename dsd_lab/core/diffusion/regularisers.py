"""Loss terms on the latents that plug-ins add; the package's own are fields of the spec's section `latent`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dsd_lab.core.shapes import scalar
from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Latent

REGULARISERS = Parts("regulariser", check=scalar)
"""(latents z [B, T, c]) -> loss, a scalar; lower is better."""


def regularisers(z: Tensor, latent: Latent) -> dict[str, tuple[float, Tensor]]:
    """Weight and value of each term that a spec asks for, by name.

    Args:
        z: latents [B, T, c], float32.
        latent: the spec's section.
    """
    used = {name: weight for name, weight in latent.regularisers.items() if weight > 0}
    return {name: (weight, REGULARISERS.bound(name, latent)(z)) for name, weight in used.items()}
