"""Counts of a training step by formula, without torch. `dsd_lab.planning.flops` counts the same from the training code.

The formulas cover most specs, and return None for the rest. A test compares both for every term that is covered:
parameters and FLOPs are equal, memory is within 10 %.
"""

from __future__ import annotations

from typing import Any

from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.trial import Stage, Trial, live_target, uses_target_encoder

_FREQUENCIES = 128
"""Sine frequencies of the time embedding in `dsd_lab.core.model.blocks.Condition`."""
_COUNTED_BATCH = 2
"""As in `dsd_lab.planning.flops`: work done once per batch is shared by so many images."""
_ROLES = ("encode", "denoise", "decode")
_ELEMENTWISE = ("variance_expansion", "vicreg_variance")
"""Regularisers without products of matrices, which count no FLOPs."""


def shape_by_formula(trial: Trial, channels: int, classes: int) -> dict[str, Any] | None:
    """The fields of `dsd_lab.planning.estimates.Shape`; None for a trial that the formulas do not cover.

    Args:
        trial: its fields.
        channels: colour channels of the images.
        classes: number of classes.
    """
    if not covers(trial):
        return None
    net = _Sizes(trial, channels, classes)
    params, heads = net.parameters(), net.auxiliary_parameters()
    copies = {"average": params["total"]} | {f"average@{d!r}": params["total"] for d in trial.training.extra_ema_decays}
    copies |= {"target": params["total"]} if trial.needs_target_encoder else {}
    forward = {role: net.forward(role, _COUNTED_BATCH) for role in _ROLES}
    stages = stage_shares(trial)
    flops = [_Sizes(stage.trial, channels, classes).step() // _COUNTED_BATCH for stage, _ in stages]
    return {
        "params": params,
        "copies": copies,
        "auxiliary": heads,
        "frozen": 0,
        "moments": 2 * (params["total"] + heads),
        "flops_per_image": round(sum(share * count for (_, share), count in zip(stages, flops, strict=True))),
        "stage_flops": flops,
        "role_flops": {role: count // _COUNTED_BATCH for role, count in forward.items()},
    }


def bytes_by_formula(trial: Trial, channels: int, classes: int) -> int | None:
    """Peak bytes per image of forward and backward, without weights; None for a trial that is not covered.

    Args:
        trial: its fields.
        channels: colour channels of the images.
        classes: number of classes.
    """
    if not covers(trial):
        return None
    return max(_Sizes(stage.trial, channels, classes).saved_bytes() for stage in trial.stages())


def stage_shares(trial: Trial) -> list[tuple[Stage, float]]:
    """Stages of training, each with its fraction of the steps."""
    stages, steps = trial.stages(), trial.training.steps
    ends = [*(stage.start for stage in stages[1:]), steps]
    return [(stage, (end - stage.start) / steps) for stage, end in zip(stages, ends, strict=True)]


def covers(trial: Trial) -> bool:
    """Whether the formulas cover a trial."""
    return all(_covers(stage) for stage in trial.stages())


def _covers(stage: Stage) -> bool:
    trial, spec, auxiliary = stage.trial, stage.trial.objective, stage.trial.auxiliary
    aligned = auxiliary.alignment > 0
    trained = {role for role in _ROLES if _is_trained(trial, role)}
    return not (
        canonical_fields(trial).get("plugins")
        or stage.frozen & trained
        or trial.training.activation_checkpointing
        or trial.optimiser.kind != "adamw"
        or trial.latent.entropy_weight > 0
        or any(weight > 0 for name, weight in trial.latent.regularisers.items() if name not in _ELEMENTWISE)
        or spec.anchor_perceptual_weight > 0
        or (trial.latent.normaliser == "layernorm_affine" and trial.latent.normalise_prediction)
        or spec.balance != "none"
        or spec.perceptual_weight > 0
        or not trained
        or (aligned and (auxiliary.alignment_to != "ema" or auxiliary.alignment_encoder > 0))
        or (aligned and (auxiliary.alignment_from != "encode"))
        or (aligned and auxiliary.alignment_layers != [-1])
    )


def _is_trained(trial: Trial, role: str) -> bool:
    """Whether the gradient of any loss passes through a role."""
    spec, auxiliary = trial.objective, trial.auxiliary
    if role == "denoise":
        return spec.diffusion_weight > 0
    if spec.reconstruction_weight > 0:
        return True
    if role == "decode":
        return _anchored(trial)
    live = spec.noised == "live" or live_target(spec)  # computed even where `encoder_gradient` scales it to 0
    return (
        (live and spec.diffusion_weight > 0)
        or max(auxiliary.alignment, auxiliary.representation, auxiliary.classification) > 0
        or trial.latent.normaliser == "kl"
        or any(trial.latent.regularisers.values())
    )


def _anchored(trial: Trial) -> bool:
    return trial.objective.anchor_weight > 0 and trial.objective.diffusion_weight > 0


class _Sizes:
    """Sizes of a trial's network, and counts derived from them."""

    def __init__(self, trial: Trial, channels: int, classes: int) -> None:
        spec = trial.network
        assert spec.image_size and spec.patch_size and spec.latent_channels and spec.width
        self.trial, self.classes = trial, classes
        self.width, self.latent = spec.width, spec.latent_channels
        self.pixels, self.tokens = channels * spec.patch_size**2, (spec.image_size // spec.patch_size) ** 2
        self.layout, self.shared = spec.layout, spec.layout == "coupled"
        own = (spec.encode_blocks, spec.denoise_blocks, spec.decode_blocks)
        counts = (spec.shared_blocks,) * 3 if self.shared else own
        self.blocks = dict(zip(_ROLES, (count or 0 for count in counts), strict=True))
        inputs = 2 if trial.latent.normaliser == "kl" else 1
        self.inside = {"encode": self.pixels, "denoise": self.latent, "decode": self.latent}
        self.outside = {"encode": inputs * self.latent, "denoise": self.latent, "decode": self.pixels}

    # -- Weights -------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, int]:
        """As `dsd_lab.core.model.network.count_parameters`."""
        w = self.width
        block = 18 * w * w + 15 * w
        blocks = {role: 0 if self.shared else n * block for role, n in self.blocks.items()}
        heads = sum(self.inside[role] * w + w for role in _ROLES)
        heads += sum(2 * w * w + 2 * w + self.outside[role] * w + self.outside[role] for role in _ROLES)
        heads += 2 * self.latent if self.trial.latent.normaliser == "layernorm_affine" else 0
        heads += 2 * w if self.layout == "separate" else 0
        condition = 2 * _FREQUENCIES * w + w + w * w + w + len(_ROLES) * w
        condition += (self.classes + 1) * w if self.classes > 1 else 0
        shared = condition + (self.blocks["encode"] * block if self.shared else 0)
        if self.layout == "separate":
            blocks["denoise"], shared = blocks["denoise"] + shared, 0
        return {"total": sum(blocks.values()) + heads + shared, **blocks, "heads": heads, "shared": shared}

    def auxiliary_parameters(self) -> int:
        return sum(a * b + b for a, b, _ in self._auxiliary_layers())

    def _auxiliary_layers(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and rows per image of the auxiliary heads' linear layers."""
        spec, w = self.trial.auxiliary, self.width
        layers = []
        if spec.alignment > 0:
            hidden = spec.head_width
            layers += [(w, hidden, self.tokens), (hidden, hidden, self.tokens), (hidden, w, self.tokens)]
        if spec.representation > 0:
            layers += [(w, spec.head_width, 1), (spec.head_width, w, 1)]
        if spec.classification > 0:
            layers += [(w if spec.classification_from == "encode" else self.latent, self.classes, 1)]
        return layers

    # -- FLOPs of a batch ----------------------------------------------------------------------------

    def forward(self, role: str, images: int) -> int:
        """FLOPs of a forward pass of a role."""
        rows = images if role == "denoise" else 1  # conditions: one per image, or one for all
        w, t = self.width, images * self.tokens
        block = 2 * t * 12 * w * w + 4 * t * self.tokens * w + 2 * rows * 6 * w * w
        time = 2 * images * (2 * _FREQUENCIES * w + w * w) if role == "denoise" else 0
        ends = 2 * t * (self.inside[role] + self.outside[role]) * w + 2 * rows * 2 * w * w
        return self.blocks[role] * block + ends + time

    def backward(self, role: str, images: int, reaches_input: bool) -> int:
        """FLOPs of the gradients of a pass: two products per forward product, one where the input needs no gradient."""
        unneeded = 0 if reaches_input else 2 * images * self.tokens * self.inside[role] * self.width
        unneeded += 2 * images * 2 * _FREQUENCIES * self.width if role == "denoise" else 0
        return 2 * self.forward(role, images) - unneeded

    def step(self) -> int:
        """FLOPs of the losses of a batch and their gradients."""
        trial, spec, n = self.trial, self.trial.objective, _COUNTED_BATCH
        flops = self.forward("encode", n)
        flops += self.backward("encode", n, reaches_input=False) if _is_trained(trial, "encode") else 0
        if spec.reconstruction_weight > 0:
            flops += self.forward("decode", n) + self.backward("decode", n, reaches_input=True)
        if spec.diffusion_weight > 0:
            draws = n * trial.training.noise_draws
            flops += self.forward("denoise", draws) + self.backward("denoise", draws, spec.noised == "live")
            if _anchored(trial):
                flops += self.forward("decode", draws) + self.backward("decode", draws, reaches_input=True)
        if uses_target_encoder(spec) or trial.auxiliary.needs_target_encoder:
            flops += self.forward("encode", n)
        return flops + sum(3 * 2 * n * rows * a * b for a, b, rows in self._auxiliary_layers())

    # -- Bytes per image ------------------------------------------------------------------------------

    def saved_bytes(self) -> int:
        """Bytes that the backward pass needs from the forward passes, and its own largest tensors."""
        trial, t, w = self.trial, self.tokens, self.width
        heads = trial.network.heads or 0
        half = trial.training.precision == "bf16"
        fused = trial.resources.gpus > 0 or not half  # as `dsd_lab.core.model.network.attends_fused`
        block = (48.6 if half else 80) * t * w + 16 * t + (4 * t * heads if fused else 2 * t * t * heads)
        draws = trial.training.noise_draws if trial.objective.diffusion_weight > 0 else 0
        encoded = int(_is_trained(trial, "encode"))
        decoded = int(trial.objective.reconstruction_weight > 0) + (draws if _anchored(trial) else 0)
        found = (encoded * self.blocks["encode"] + decoded * self.blocks["decode"]) * block
        found += draws * self.blocks["denoise"] * (block + (18 if half else 32) * w)
        found += 4 * draws * (5.2 * t * w + 2.6 * w)
        found += 4 * (encoded + decoded) * t * (3.7 * w + 1.65 * self.pixels + 2.2 * self.latent)
        return round(found + 4 * sum(rows * (a + b) for a, b, rows in self._auxiliary_layers()))
