"""The perceptual loss: distance of images in the features of a frozen vision model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.model.backbones import Backbone

if TYPE_CHECKING:
    from dsd_lab.specs.sources import NamedBackbone


class Perceptual:
    """Feature reconstruction (Johnson, Alahi and Fei-Fei, arXiv 1603.08155, eq. 2): |phi_j(a) - phi_j(b)|^2 per feature.

    Squares are averaged over the channels and positions of a stage, then over timm's default stages (ours). Images are
    resized up to a multiple of the model's deepest reduction.

    Raises:
        BadInput: the model is unknown, or its weights cannot be loaded.
    """

    def __init__(self, named: NamedBackbone, image_size: int, device: torch.device) -> None:
        self.backbone = Backbone(named, None, lambda reduction: -(-image_size // reduction) * reduction, device)

    def __call__(self, image: Tensor, x: Tensor) -> Tensor:
        """The loss, a scalar, of decoded images against x, both [B, C, H, W] in [-1, 1]; x has no gradient."""
        with torch.no_grad():
            wanted = self.backbone.features(x)
        found = self.backbone.features(image)
        return torch.stack([(a.float() - b.float()).square().mean() for a, b in zip(found, wanted, strict=True)]).mean()
