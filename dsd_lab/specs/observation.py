"""Fields of what is recorded while training; none of it changes the result."""

from __future__ import annotations

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section as Section


class Probe(Section):
    """Latent metrics on a fixed set of held-out images."""

    every: int = Field(100, ge=1, le=10**9)
    """Steps between probes; the first and the last step are always probed."""
    images: int = Field(256, ge=2, le=10**5)
    """Held-out images in the probe set (all of them where there are fewer)."""
    t_bins: int = Field(5, ge=1, le=100)
    """Equal bins of t in which the rank gap is measured."""
    gradient_images: int = Field(32, ge=0, le=4096)
    """Images in the batch on which gradients are compared; 0 leaves the comparison out."""
    scale_images: int = Field(128, ge=0, le=10**5)
    """Images (of `images`) on which the diffusion loss' derivative by the latents' scale is measured; 0 leaves it out."""


class Observation(Section):
    """What is recorded while training; none of it changes the result."""

    log_every: int = Field(20, ge=1, le=10**9)
    """Steps between loss records; a record is the mean since the last one."""
    checkpoint_every: int = Field(500, ge=1, le=10**9)
    """Steps between checkpoints; a killed trial loses at most these."""
    checkpoints_kept: int = Field(2, ge=1, le=1000)
    """Complete checkpoints kept while training."""
    keep_every: int | None = Field(None, ge=1, le=10**9)
    """Steps between checkpoints that are kept for good, a multiple of `checkpoint_every`; none if left out. Another trial that trains alike until then goes on from one."""
    images_every: int = Field(500, ge=1, le=10**9)
    """Steps between grids of reconstructions and samples; always drawn at the end."""
    images: int = Field(20, ge=1, le=400)
    """Images in a grid."""

    @model_validator(mode="after")
    def _keeps_what_is_saved(self) -> Observation:
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every: {self.keep_every} is no multiple of checkpoint_every ({self.checkpoint_every})"
            )
        return self
