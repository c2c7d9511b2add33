"""Fields of what the paper adds to its core: augmentation of the images, and auxiliary losses.

The paper (arXiv 2511.14716) names random masking and three auxiliary losses and publishes no value
of any of them: every default here is ours, and switches the part off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from dsd_lab.specs.section import Section

if TYPE_CHECKING:
    from dsd_lab.specs.fields import Trial

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


class Auxiliary(Section):
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
    """Weights of that timm model: a safetensors or PyTorch file, relative to the spec's file, or `pretrained` (timm downloads them), or `random`. Only the file's name is in a trial's identity."""
    alignment_noised: Literal["live", "detached"] = "live"
    """Whether the denoiser's alignment reaches the encoder through z_t; where `objective.noised` says otherwise it takes a pass of its own."""
    representation: float = Field(0.0, ge=0, le=1e6)
    """Weight of predicting the EMA copy's mean encoder token from the online encoder's with an MLP, 2 - 2 cosine, as BYOL (arXiv 2006.07733); 0 leaves it out."""
    classification: float = Field(0.0, ge=0, le=1e6)
    """Weight of the cross entropy of a linear classifier, with the labels before label drop; 0 leaves it out."""
    classification_from: Literal["latent", "encode"] = "latent"
    """What it classifies: the mean latent token, or the encoder's mean token after its last block (ours)."""
    head_width: int = Field(256, ge=1, le=65536)
    """Hidden units of the MLPs of alignment and representation (ours; REPA's have 2048)."""

    @property
    def needs_target_encoder(self) -> bool:
        """Whether a loss compares with the EMA copy; a new one that does is added here."""
        return self.representation > 0 or (self.alignment > 0 and self.alignment_to == EMA)


class NamedBackbone(NamedTuple):
    """A timm model that a trial names, and the keys that say so."""

    key: str
    name: str
    weights_key: str
    weights: str
    layers_key: str

    @property
    def from_file(self) -> bool:
        """Whether its weights are in a file that the spec names."""
        return self.weights not in NO_FILES


def named_backbones(trial: Trial) -> dict[str, NamedBackbone]:
    """The timm models that a trial's losses use, by the loss."""
    found = {}
    auxiliary, objective = trial.auxiliary, trial.objective
    if objective.perceptual_weight > 0:
        found["perceptual"] = NamedBackbone(
            "objective.perceptual_backbone",
            str(objective.perceptual_backbone),
            "objective.perceptual_weights",
            str(objective.perceptual_weights),
            "objective.perceptual_backbone",
        )
    if auxiliary.alignment > 0 and auxiliary.alignment_to != EMA:
        found["alignment"] = NamedBackbone(
            "auxiliary.alignment_to",
            auxiliary.alignment_to,
            "auxiliary.alignment_weights",
            str(auxiliary.alignment_weights),
            "auxiliary.alignment_target_layers",
        )
    return found


def named_paths(trial: Trial) -> dict[tuple[str, str], str]:
    """Folders and files that a trial reads, by section and field."""
    found = {} if trial.data.path is None else {("data", "path"): trial.data.path}
    for named in named_backbones(trial).values():
        if named.from_file:
            section, name = named.weights_key.split(".")
            found[section, name] = named.weights
    return found


def blocks_of(trial: Trial, role: str) -> int:
    """Blocks that a role runs through."""
    shared = trial.network.layout == "coupled"
    return int(getattr(trial.network, "shared_blocks" if shared else f"{role}_blocks"))


def misfit(trial: Trial) -> str | None:
    """What of augmentation and auxiliary losses does not fit the other sections, beginning with the key; or None."""
    size, crop, spec = trial.network.image_size, trial.augmentation.crop, trial.auxiliary
    if size is not None and crop >= size:
        return f"augmentation.crop: {crop} is not below network.image_size ({size})"
    if spec.alignment == 0:
        return None
    if len(spec.alignment_layers) != len(spec.alignment_target_layers):
        return f"auxiliary.alignment_target_layers: {len(spec.alignment_target_layers)} layers for the {len(spec.alignment_layers)} of alignment_layers; each needs one"
    if spec.alignment_from == "denoise" and trial.objective.diffusion_weight == 0:
        return "auxiliary.alignment_from: the denoiser is not trained where objective.diffusion_weight is 0"
    if spec.alignment_to != EMA and spec.alignment_weights is None:
        return f"auxiliary.alignment_weights: {spec.alignment_to} needs a file, `pretrained` or `random`"
    sides = [("alignment_layers", spec.alignment_from)]
    sides += [("alignment_target_layers", "encode")] if spec.alignment_to == EMA else []
    for name, role in sides:
        count = blocks_of(trial, role)
        for layer in getattr(spec, name):
            if not -count <= layer < count:
                return f"auxiliary.{name}: {layer} is no block of {role}, which has {count} ({-count} to {count - 1})"
    return None
