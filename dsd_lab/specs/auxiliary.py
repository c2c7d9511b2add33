"""Fields of the paper's additions: augmentation of the images, and auxiliary losses.

The paper (arXiv 2511.14716) names random masking and three auxiliary losses, but publishes no values. All defaults are
ours; they switch these parts off.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dsd_lab.specs.base import Section
from dsd_lab.specs.part_fields import Choice, PartSection
from dsd_lab.specs.registry import find_plugin_part

EMA = "ema"
NO_FILES = ("pretrained", "random")
"""Weights of a timm model that are not a file: timm's download, or a fixed random initialisation."""
Layer = Annotated[int, Field(ge=-128, le=127)]


class Augmentation(Section):
    """Random changes of the training images (the paper names masking; flip, crop and all values are ours)."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability that an image is mirrored left to right, for both encoders and the reconstruction (ours)."""
    crop: int = Field(0, ge=0, le=1023)
    """Largest shift in pixels, along each axis, of a random crop of the reflect-padded image, for both encoders and the reconstruction (ours)."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Fraction of the online encoder's input tokens replaced by zeros. An EMA target encoder sees all tokens, and the whole image is reconstructed (the paper names random masking; the fraction is ours)."""


class Auxiliary(PartSection):
    """Weights and settings of auxiliary losses (the paper names the losses; weights and forms are ours)."""

    alignment: float = Field(0.0, ge=0, le=1e6)
    """Weight of the alignment loss: minus the mean cosine between the network's tokens after an MLP and those of another model, as in REPA (arXiv 2410.06940). 0 switches it off."""
    alignment_from: Literal["encode", "denoise"] = "encode"
    """Which tokens are aligned: those of the online encoder, or of the denoiser (as in REPA and REPA-E, arXiv 2504.10483)."""
    alignment_layers: list[Layer] = Field([-1], min_length=1, max_length=64)
    """Indices of that role's blocks; negative indices count from the end (ours: the last)."""
    alignment_to: str = Field(EMA, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """`ema`: aligned to the blocks of the EMA encoder. Any other value is the name of a timm model, which is frozen; its input images are scaled so that its grid equals the tokens' grid."""
    alignment_target_layers: list[Layer] = Field([-1], min_length=1, max_length=64)
    """Index of the target layer for each of `alignment_layers`, counted in the same way (ours: the last)."""
    alignment_weights: str | None = Field(None, min_length=1)
    """Weights of that timm model: a safetensors or PyTorch file (relative to the spec file), `pretrained` (timm downloads them) or `random`. Only the file's name is part of a trial's identity."""
    alignment_noised: Literal["live", "detached"] = "live"
    """Whether the denoiser's alignment reaches the encoder through z_t. If it differs from `objective.noised`, alignment needs a second forward pass."""
    alignment_encoder: float = Field(0.0, ge=0, le=1e6)
    """Weight of a second pass of the denoiser's alignment that trains only the encoder: denoiser and heads are frozen, labels are not dropped, `batchnorm` uses running statistics. 0 switches it off. REPA-E uses 1.5 with an `alignment` of 0.5 on detached latents (arXiv 2504.10483)."""
    representation: float = Field(0.0, ge=0, le=1e6)
    """Weight of BYOL's loss (arXiv 2006.07733): an MLP predicts the EMA encoder's mean token from the online encoder's, 2 - 2 cosine. 0 switches it off."""
    classification: float = Field(0.0, ge=0, le=1e6)
    """Weight of the cross entropy of a linear classifier, with labels before label drop. 0 switches it off."""
    classification_from: Literal["latent", "encode"] = "latent"
    """Input of the classifier: the mean latent token, or the encoder's mean token after its last block (ours)."""
    head_width: int = Field(256, ge=1, le=65536)
    """Hidden units of the MLPs of alignment and representation (ours; REPA uses 2048)."""

    extra: dict[Annotated[str, Choice("auxiliary")], Annotated[float, Field(ge=0, le=1e6)]] = {}
    """Weights of plug-ins' auxiliary losses by name; 0 switches one off."""

    @property
    def needs_target_encoder(self) -> bool:
        """Whether a loss reads the EMA encoder."""
        extra = self.extra_reads("target") is not None
        return extra or self.representation > 0 or (self.alignment > 0 and self.alignment_to == EMA)

    def extra_reads(self, tokens: str) -> str | None:
        """Name of a plug-in's loss, with a weight above 0, that reads `encode`, `denoise` or `target` tokens; or None."""
        used = (name for name, weight in self.extra.items() if weight > 0)
        found = ((name, find_plugin_part("auxiliary", name)) for name in used)
        return next((name for name, part in found if part is not None and tokens in part.made.reads), None)
