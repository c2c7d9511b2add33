"""Fields of what is recorded in training; they do not change the result."""

from __future__ import annotations

from pydantic import Field, model_validator

from dsd_lab.specs.base import Section as Section


class Probe(Section):
    """Latent metrics on a fixed set of held-out images."""

    every: int = Field(100, ge=1, le=10**9)
    """Steps between probes; the first and the last step are always probed."""
    images: int = Field(256, ge=2, le=10**5)
    """Held-out images in the probe set, or all of them if there are fewer."""
    t_bins: int = Field(5, ge=1, le=100)
    """Number of equal bins of t for the rank gap."""
    gradient_images: int = Field(32, ge=0, le=4096)
    """Images for the comparison of gradients; 0 switches it off."""
    scale_images: int = Field(128, ge=0, le=10**5)
    """Images (of `images`) for the derivative of the diffusion loss with respect to the latents' scale; 0 switches it off."""


class Observation(Section):
    """What is recorded in training; none of it changes the result."""

    log_every: int = Field(20, ge=1, le=10**9)
    """Steps between loss records; a record is the mean since the previous one."""
    checkpoint_every: int = Field(500, ge=1, le=10**9)
    """Steps between checkpoints; a killed trial loses at most this many steps."""
    checkpoints_kept: int = Field(2, ge=1, le=1000)
    """Number of newest checkpoints that are kept."""
    keep_every: int | None = Field(None, ge=1, le=10**9)
    """Steps between checkpoints that are never removed, a multiple of `checkpoint_every`; null: none. Another trial with the same training up to that step can start from one."""
    images_every: int = Field(500, ge=1, le=10**9)
    """Steps between grids of reconstructions and samples; they are always drawn at the end."""
    images: int = Field(20, ge=1, le=400)
    """Images per grid."""

    @model_validator(mode="after")
    def _keeps_what_is_saved(self) -> Observation:
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every: {self.keep_every} is no multiple of checkpoint_every ({self.checkpoint_every})"
            )
        return self
