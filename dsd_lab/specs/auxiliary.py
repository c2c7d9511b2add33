"""Fields of what the paper adds to its core: augmentation of the images, and auxiliary losses.

The paper (arXiv 2511.14716) names random masking and three auxiliary losses and publishes no value
of any of them: every default here is ours, and switches the part off.
"""

from __future__ import annotations

from pydantic import Field

from dsd_lab.specs.section import Section


class Augmentation(Section):
    """Random changes of the training images (the paper names masking; flip, crop and all values are ours)."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability that an image is mirrored left to right, for both encoders and the reconstruction (ours)."""
    crop: int = Field(0, ge=0, le=1023)
    """Largest shift in pixels, along each axis, of a random crop of the reflect-padded image, for both encoders and the reconstruction (ours)."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Fraction of the online encoder's input tokens replaced by zeros; an EMA target encoder sees all tokens, and the whole image is reconstructed (the paper names random masking; the fraction is ours)."""
