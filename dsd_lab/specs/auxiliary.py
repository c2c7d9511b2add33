"""Fields of what the paper adds to its core: augmentation of the images, and auxiliary losses.

The paper (arXiv 2511.14716) names random masking and three auxiliary losses and publishes no value
of any of them: every default here is ours, and switches the part off.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsd_lab.specs.base import Section
from dsd_lab.specs.part_fields import Choice, PartSection
from dsd_lab.specs.registry import find_plugin_part

EMA = "ema"
NO_FILES = ("pretrained", "random")
"""Weights of a timm model that come from no file: its own download, or a fixed random start."""
Layer = Annotated[int, Field(ge=-128, le=127)]


class Augmentation(Section):
    """Random changes of the training images (the paper names masking; flip, crop and all values are ours)."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability that an image is mirrored left to right, for both encoders and the reconstruction (ours)."""
    crop: int = Field(0, ge=0, le=1023)
    """Largest shift in pixels, along each axis, of a random crop of the reflect-padded image, for both encoders and the reconstruction (ours)."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Fraction of the online encoder's input tokens replaced by zeros; an EMA target encoder sees all tokens, and the whole image is reconstructed (the paper names random masking; the fraction is ours)."""


class Auxiliary(PartSection):
    """Losses beside reconstruction and diffusion, each with a weight (the paper names them; weights and forms are ours)."""

    alignment: float = Field(0.0, ge=0, le=1e6)
    """Weight of aligning tokens of the network's blocks to those of another: minus the mean cosine after an MLP, as REPA (arXiv 2410.06940); 0 leaves it out."""
    alignment_from: Literal["encode", "denoise"] = "encode"
    """Whose tokens are aligned: the online encoder's, or the denoiser's (as REPA and REPA-E, arXiv 2504.10483)."""
    alignment_layers: list[Layer] = Field([-1], min_length=1, max_length=64)
    """Blocks of that role, counted from 0 or, below 0, from the end (ours: the last)."""
    alignment_to: str = Field(EMA, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """`ema`: the blocks of the EMA copy's encoder. Any other: the name of a timm model, frozen, as vision foundation model; its images are scaled so that its grid is that of the tokens."""
    alignment_target_layers: list[Layer] = Field([-1], min_length=1, max_length=64)
    """The layer that each of `alignment_layers` is aligned to, counted alike (ours: the last)."""
    alignment_weights: str | None = Field(None, min_length=1)
    """Weights of that timm model: a safetensors or PyTorch file, relative to the file that names it, or `pretrained` (timm downloads them), or `random`. Only the file's name is in a trial's identity."""
    alignment_noised: Literal["live", "detached"] = "live"
    """Whether the denoiser's alignment reaches the encoder through z_t; where `objective.noised` says otherwise it takes a pass of its own."""
    alignment_encoder: float = Field(0.0, ge=0, le=1e6)
    """Weight of a second pass of the denoiser's alignment, which trains the encoder alone: denoiser and heads are held, labels are not dropped, `batchnorm` uses its running statistics; 0 leaves it out. REPA-E has 1.5 beside an `alignment` of 0.5 on detached latents (arXiv 2504.10483)."""
    representation: float = Field(0.0, ge=0, le=1e6)
    """Weight of predicting the EMA copy's mean encoder token from the online encoder's with an MLP, 2 - 2 cosine, as BYOL (arXiv 2006.07733); 0 leaves it out."""
    classification: float = Field(0.0, ge=0, le=1e6)
    """Weight of the cross entropy of a linear classifier, with the labels before label drop; 0 leaves it out."""
    classification_from: Literal["latent", "encode"] = "latent"
    """What it classifies: the mean latent token, or the encoder's mean token after its last block (ours)."""
    head_width: int = Field(256, ge=1, le=65536)
    """Hidden units of the MLPs of alignment and representation (ours; REPA's have 2048)."""

    extra: dict[Annotated[str, Choice("auxiliary")], Annotated[float, Field(ge=0, le=1e6)]] = {}
    """Weights of plug-ins' auxiliary losses, by name; 0 leaves one out."""

    @property
    def needs_target_encoder(self) -> bool:
        """Whether a loss compares with the EMA copy."""
        extra = self.extra_reads("target") is not None
        return extra or self.representation > 0 or (self.alignment > 0 and self.alignment_to == EMA)

    def extra_reads(self, tokens: str) -> str | None:
        """Name of a plug-in's loss in use that reads the tokens of a pass (`encode`, `denoise` or `target`)."""
        used = (name for name, weight in self.extra.items() if weight > 0)
        found = ((name, find_plugin_part("auxiliary", name)) for name in used)
        return next((name for name, part in found if part is not None and tokens in part.made.reads), None)
