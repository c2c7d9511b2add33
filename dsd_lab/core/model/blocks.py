"""Transformer blocks and their conditioning on time, class and role."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from dsd_lab.specs.registry import Parts

if TYPE_CHECKING:
    from dsd_lab.specs.network import Network as NetworkSpec

ROLES = ("encode", "denoise", "decode")


class TanhGELU(nn.Module):
    """x / 2 (1 + tanh u) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, arXiv 1606.08415).

    Compiled code uses the right-hand side: on a CPU an exponential is much cheaper than a hyperbolic tangent.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))
        return nn.functional.gelu(x, approximate="tanh")


def widened(x: Tensor) -> Tensor:
    """The tensor, converted to float32 if it is bfloat16 or float16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Context without autocast on the tensor's device."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else contextlib.nullcontext()


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output in float32, also under autocast: bfloat16 loses 9 to 28 % of the signal of shrunk latents."""
    with no_autocast(x):
        out: Tensor = layer(widened(x))
    return out


BLOCKS = Parts("block")
"""Classes of `Block`, built from width and heads."""


class Block(nn.Module, ABC):
    """A block of the network: all roles run through blocks of one kind."""

    hidden: tuple[str, ...] = ()
    """Children whose matrices `optimiser.kind: muon` moves; not those that start at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, T, width], condition [B or 1, width] -> [B, T, width]."""

    def start(self) -> None:
        """Set weights that training begins with otherwise than Glorot-uniform (matrices) and 0 (biases)."""


def build_blocks(spec: NetworkSpec, count: int) -> list[Block]:
    """Blocks of the kind that a spec names."""
    assert spec.width and spec.heads
    part, made = BLOCKS.part(spec.block), BLOCKS.bound(spec.block, spec)
    blocks: list[Block] = [made(spec.width, spec.heads) for _ in range(count)]
    if not all(isinstance(block, Block) for block in blocks):
        raise part.fault(f"gives a {type(blocks[0]).__name__}, not a Block")
    return blocks


@BLOCKS.add("adaln_zero")
class AdaLNZero(Block):
    """A transformer block with adaLN-Zero: the condition sets shift, scale and gate of both branches."""

    hidden = ("attention", "mlp")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden_features=4 * width, act_layer=TanhGELU)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, T, width], condition [B or 1, width] -> [B, T, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attention(torch.addcmul(shift1, self.norm1(tokens), 1 + scale1))
        return tokens + gate2 * self.mlp(torch.addcmul(shift2, self.norm2(tokens), 1 + scale2))

    def start(self) -> None:
        """As the identity."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)


class Head(nn.Module):
    """The last layer of a role: norm, adaLN shift and scale, and a linear layer in float32."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, out)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, T, width], condition [B or 1, width] -> [B, T, out]."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return in_float32(self.out, torch.addcmul(shift, self.norm(tokens), 1 + scale))

    def start(self) -> None:
        """Unconditioned."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)


class RoleCondition(nn.Module):
    """The condition of a network with one role, encoder or decoder: one trained vector [1, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.role = nn.Embedding(1, width)

    def forward(self, role: str, t: Tensor | None, y: Tensor | None) -> Tensor:
        return nn.functional.silu(self.role.weight)


class Condition(nn.Module):
    """Embeds time, class and role into one vector [B, width]. With one class there is no class embedding."""

    FREQUENCIES = 128
    frequencies: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes > 1 else None
        self.role = nn.Embedding(len(ROLES), width)
        periods = torch.exp(-math.log(10_000) * torch.arange(self.FREQUENCIES) / self.FREQUENCIES)
        self.register_buffer("frequencies", 1000 * periods, persistent=False)
        self.classes = classes

    def forward(self, role: str, t: Tensor | None, y: Tensor | None) -> Tensor:
        """Condition [B or 1, width] of a role at times t [B] for labels y [B]; encoder and decoder have neither."""
        index = ROLES.index(role)
        vector = self.role.weight[index : index + 1]
        if t is not None:
            angles = t[:, None] * self.frequencies
            vector = vector + self.time(torch.cat([angles.cos(), angles.sin()], dim=-1))
        if y is not None and self.label is not None:
            vector = vector + self.label(y)
        return nn.functional.silu(vector)


def sine_positions(side: int, width: int) -> Tensor:
    """Fixed 2D sine-cosine position embedding [side * side, width] (as in MAE and DiT)."""
    quarter = width // 4
    frequencies = torch.exp(-math.log(10_000) * torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies
    row = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([row[:, None].expand(side, side, -1), row[None].expand(side, side, -1)], dim=-1)
    return grid.reshape(side * side, width)
