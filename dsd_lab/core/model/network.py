"""One vision transformer that encodes images, denoises latents and decodes them.

Its three roles have their own blocks (`modular`), or share all blocks and differ by a role embedding (`coupled`), or
share no weights (`separate`: three networks in one module). Blocks are conditioned on time, class and role, those of the
package by adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748). Attention and MLP are timm's, used in `AdaLNZero` only.

Shapes: images x [B, C, H, W] in [-1, 1]; latents z [B, T, c]; times t [B], t = 1 clean; labels y
[B], with `classes` standing for "no class".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsd_lab.core.model.blocks import (
    BLOCKS,
    ROLES,
    Block,
    Condition,
    Head,
    RoleCondition,
    build_blocks,
    in_float32,
    no_autocast,
    sine_positions,
    widened,
)
from dsd_lab.core.model.normalisers import NORMALISERS, build_normaliser
from dsd_lab.core.peers import ALONE, Peers
from dsd_lab.core.shapes import like_first

if TYPE_CHECKING:
    from dsd_lab.specs.network import Network as NetworkSpec
    from dsd_lab.specs.trial import Trial

_SHAPES_COMPILED = 256
"""Token shapes for which a process compiles blocks at most: 256 is torch's limit over all code. With torch's default
of 8, the third network size in a process would run uncompiled."""


class Network(nn.Module):
    """The deployed network: encoder, denoiser and decoder.

    Args:
        trial: sections `network` and `latent` are used.
        channels: colour channels of the images.
        classes: number of classes; label `classes` is "no class". With fewer than 2, the network is unconditional.
    """

    position: Tensor
    peers: Peers = ALONE
    """The processes that share each training batch."""

    def __init__(self, trial: Trial, channels: int, classes: int) -> None:
        super().__init__()
        spec = trial.network
        assert spec.image_size and spec.patch_size and spec.latent_channels and spec.width and spec.heads
        self.channels, self.classes, self.patch = channels, classes, spec.patch_size
        self.side = spec.image_size // spec.patch_size
        self.tokens, self.latent_channels = self.side**2, spec.latent_channels
        width, pixels = spec.width, channels * spec.patch_size**2

        self.frozen: frozenset[str] = frozenset()
        self.activation_checkpointing = False
        """Whether the backward pass recomputes the activations of blocks instead of storing them."""
        self.condition = Condition(width, classes)
        separate = spec.layout == "separate"
        self.own_conditions = nn.ModuleDict(
            {role: RoleCondition(width) for role in ("encode", "decode")} if separate else {}
        )
        self.register_buffer("position", sine_positions(self.side, width), persistent=False)
        self.patch_in = nn.Linear(pixels, width)
        self.noisy_in = nn.Linear(spec.latent_channels, width)
        self.latent_in = nn.Linear(spec.latent_channels, width)
        self.block = BLOCKS.part(spec.block)
        self.blocks = nn.ModuleList()
        self.ranges: dict[str, range] = {}
        if spec.layout == "coupled":
            self._add_blocks(ROLES, spec.shared_blocks, spec)
        else:
            for role, count in zip(ROLES, (spec.encode_blocks, spec.denoise_blocks, spec.decode_blocks), strict=True):
                self._add_blocks((role,), count, spec)
        self.heads = nn.ModuleDict(
            {
                "encode": Head(width, spec.latent_channels * NORMALISERS[trial.latent.normaliser].inputs),
                "denoise": Head(width, spec.latent_channels),
                "decode": Head(width, pixels),
            }
        )
        self.normaliser = build_normaliser(spec.latent_channels, trial.latent)
        self.normalises_prediction = trial.latent.normalise_prediction
        self.decodes_raw = trial.latent.decoded == "raw"
        self._initialise()

    def _add_blocks(self, roles: tuple[str, ...], count: int | None, spec: NetworkSpec) -> None:
        assert count is not None
        start = len(self.blocks)
        self.blocks.extend(build_blocks(spec, count))
        for role in roles:
            self.ranges[role] = range(start, start + count)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for part in [*self.blocks, *self.heads.values()]:
            assert isinstance(part, Block | Head)
            part.start()

    def _condition(self, role: str, t: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        if role in self.own_conditions:
            condition: Tensor = self.own_conditions[role](role, t, y)
        else:
            condition = self.condition(role, t, y)
        # Other rows of the role table still train; without detach, autograd would traverse the whole frozen role.
        return condition.detach() if role in self.frozen else condition

    def _run(self, role: str, tokens: Tensor, condition: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        tokens = tokens + self.position
        for index in self.ranges[role]:
            before, tokens = tokens, self._through(self.blocks[index], tokens, condition)
            if (wrong := like_first(tokens, before)) is not None:
                raise self.block.fault(wrong)
            if hidden_states is not None:
                hidden_states.append(tokens)
        return self.heads[role](tokens, condition)

    def _through(self, block: nn.Module, tokens: Tensor, condition: Tensor) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
            return again
        out: Tensor = block(tokens, condition)
        return out

    def encode_raw(self, x: Tensor, mask: Tensor | None = None, hidden_states: list[Tensor] | None = None) -> Tensor:
        """Images [B, C, H, W] -> input of the normaliser: [B, T, c], or means and log variances [B, T, 2c] (`kl`).

        Tokens where `mask` [B, T] is true are zeros plus their position embedding. The output
        [B, T, width] of every block is appended to `hidden_states`, as in `encode` and `denoise`.
        """
        tokens = self.patch_in(self.patchify(x))
        tokens = tokens if mask is None else tokens.masked_fill(mask[..., None], 0)
        return self._run("encode", tokens, self._condition("encode"), hidden_states)

    def encode(self, x: Tensor, noise: Tensor | None = None, hidden_states: list[Tensor] | None = None) -> Tensor:
        """Images [B, C, H, W] -> normalised latents [B, T, c]; noise [B, T, c] is for normalisers that add noise."""
        return self.normalise(self.encode_raw(x, hidden_states=hidden_states), noise)

    def normalise(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Output of `encode_raw` -> latents [B, T, c] in float32, whatever the precision of the blocks."""
        with no_autocast(raw):
            raw, gathers = widened(raw), self.normaliser.whole_batch and self.normaliser.training
            if self.peers.alone or not gathers:
                z: Tensor = self.normaliser(raw, noise)
                return z
            every = self.normaliser(self.peers.whole(raw), None if noise is None else self.peers.whole(noise))
            return self.peers.own(every)

    def denoise(self, z_t: Tensor, t: Tensor, y: Tensor, hidden_states: list[Tensor] | None = None) -> Tensor:
        """Noised latents [B, T, c] at times [B] with labels [B] -> clean latent or velocity [B, T, c].

        Under `latent.normalise_prediction`, clean latents pass through the normaliser.
        """
        out = self._run("denoise", in_float32(self.noisy_in, z_t), self._condition("denoise", t, y), hidden_states)
        return self.normalise(out) if self.normalises_prediction else out

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, T, c] -> images [B, C, H, W]. If `latent.decoded` is `raw`, normalisation is inverted first."""
        return self.decode_input(self.normaliser.undone(z) if self.decodes_raw else z)

    def decode_input(self, latents: Tensor) -> Tensor:
        """Input of the decoder [B, T, c] -> images [B, C, H, W]."""
        return self.unpatchify(self._run("decode", in_float32(self.latent_in, latents), self._condition("decode")))

    def patchify(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, C p p]."""
        b, s, p = len(x), self.side, self.patch
        return x.reshape(b, self.channels, s, p, s, p).permute(0, 2, 4, 1, 3, 5).reshape(b, s * s, -1)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[B, T, C p p] -> [B, C, H, W]."""
        b, s, p = len(patches), self.side, self.patch
        return (
            patches.reshape(b, s, s, self.channels, p, p)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(b, self.channels, s * p, s * p)
        )

    def role_parameters(self, role: str) -> list[nn.Parameter]:
        """Weights that a role uses; under `coupled`, all roles use all blocks.

        The table of role vectors is not included: each of its rows belongs to one role.
        """
        entry: dict[str, list[nn.Module]] = {
            "encode": [self.patch_in],
            "denoise": [self.noisy_in, self.condition.time, *filter(None, [self.condition.label])],
            "decode": [self.latent_in],
        }
        own = [self.own_conditions[role]] if role in self.own_conditions else []
        shares = role == "encode" or (role == "denoise" and self.normalises_prediction)
        normaliser = [self.normaliser] if shares else []
        parts = [*entry[role], *own, self.heads[role], *normaliser, *(self.blocks[i] for i in self.ranges[role])]
        return [p for part in parts for p in part.parameters()]

    def attend_fused(self, fused: bool) -> None:
        """Choose torch's fused attention kernel (the default), or separate matrix products and a softmax."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused_attn = fused  # type: ignore[misc]  # declared final for torch.jit

    def compile_blocks(self) -> None:
        """Compile the blocks with torch, for each token shape; blocks of one width share compiled code."""
        for block in self.blocks:
            block.compile(dynamic=False, recompile_limit=_SHAPES_COMPILED)

    def freeze(self, roles: frozenset[str]) -> None:
        """Freeze the weights of these roles and unfreeze all others.

        The table of role vectors keeps `requires_grad`, since its other rows are trained.
        """
        self.frozen = roles
        self.requires_grad_(True)
        for role in roles:
            for parameter in self.role_parameters(role):
                parameter.requires_grad_(False)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Weights between image and latent; under `coupled`, other roles share its blocks."""
        return self.role_parameters("encode")


def attends_fused(precision: str, on_gpu: bool) -> bool:
    """Whether torch's fused attention is faster than separate operations.

    On a CPU in bfloat16, the fused kernel of torch 2.14 takes 1.7 to 5 times as long, forward and backward (an EPYC
    with AVX512-BF16; 4 to 256 tokens); in float32 it is faster.
    """
    return on_gpu or precision == "fp32"


def count_parameters(network: Network) -> dict[str, int]:
    """Number of weights by role: total = encode + denoise + decode + heads + shared.

    `heads` are the maps between pixels, latents and tokens; `shared` are weights used by several roles.
    """

    def size(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    coupled = network.ranges["encode"] == network.ranges["decode"]
    blocks = {role: 0 if coupled else size(*(network.blocks[i] for i in network.ranges[role])) for role in ROLES}
    heads = size(network.patch_in, network.noisy_in, network.latent_in, network.heads, network.normaliser)
    heads += size(network.own_conditions)
    shared = size(network.condition) + (size(network.blocks) if coupled else 0)
    if network.own_conditions:  # three networks: only the denoiser has a condition with time and class
        blocks["denoise"], shared = blocks["denoise"] + shared, 0
    return {"total": size(network), **blocks, "heads": heads, "shared": shared}
