"""Gradient clipping per part, so that a loss cannot slow down weights that it does not reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dsd_lab.core.model.blocks import ROLES

if TYPE_CHECKING:
    from dsd_lab.core.diffusion.auxiliary import Auxiliaries
    from dsd_lab.core.model.network import Network


@dataclass
class Part:
    """Weights that are clipped together: whole parameters, and rows of a table shared with other parts."""

    name: str
    weights: list[nn.Parameter] = field(default_factory=list)
    rows: list[tuple[Tensor, int]] = field(default_factory=list)

    def gradients(self) -> list[Tensor]:
        """All gradients that are not None; those of rows are views."""
        whole = [weight.grad for weight in self.weights if weight.grad is not None]
        return whole + [table.grad[row : row + 1] for table, row in self.rows if table.grad is not None]


def clipped_parts(network: Network, auxiliaries: Auxiliaries) -> list[Part]:
    """The parts that share no weight: roles of the network, and the heads of each auxiliary loss.

    Roles that share blocks are one part; if all do, it is called `network`. Each row of the table of role vectors is
    clipped with its role. A single `clip_grad_norm_` over all weights would let the diffusion loss scale the encoder's
    step even if it is detached from the latents.
    """
    parts: list[Part] = []
    for roles in _connected({role: network.role_parameters(role) for role in ROLES}):
        weights = {id(p): p for role in roles for p in network.role_parameters(role)}
        rows = [(network.condition.role.weight, ROLES.index(role)) for role in roles]
        name = "network" if len(roles) == len(ROLES) else "_".join(roles)
        parts.append(Part(name, list(weights.values()), rows))
    heads = ((name, list(head.parameters())) for name, head in auxiliaries.heads.items())
    return parts + [Part(name, weights) for name, weights in heads if weights]


def _connected(owned: dict[str, list[nn.Parameter]]) -> list[list[str]]:
    """Groups of names such that no weight belongs to two groups."""
    groups: list[tuple[list[str], set[int]]] = []
    for name, weights in owned.items():
        names, ids = [name], {id(weight) for weight in weights}
        for group in [group for group in groups if group[1] & ids]:
            groups.remove(group)
            names, ids = [*group[0], *names], ids | group[1]
        groups.append((names, ids))
    return [names for names, _ in groups]


@torch.no_grad()
def clip_gradients(parts: Sequence[Part], limit: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Scale the gradients of each part to an L2 norm of at most `limit`.

    Returns:
        The norm of all gradients before clipping, and for each part whether it was clipped (1 or 0); scalars on the
        device of the weights. A part without gradients has norm 0.
    """
    norms = [_clip(part.gradients(), limit) for part in parts]
    present = [norm for norm in norms if norm is not None]
    total = torch.stack(present).square().sum().sqrt() if present else parts[0].weights[0].new_zeros(())
    return total, {
        part.name: total.new_zeros(()) if norm is None else (norm > limit).to(total)
        for part, norm in zip(parts, norms, strict=True)
    }


def _clip(gradients: list[Tensor], limit: float) -> Tensor | None:
    """As `torch.nn.utils.clip_grad_norm_`, for gradients that may be views; None without gradients."""
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
