"""The optimiser: AdamW, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsd_lab.core.model.blocks import Block

if TYPE_CHECKING:
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Optimiser


class Optimisers:
    """Several optimisers, each for its own weights, with the interface of one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimisers; their learning rate may be set."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def can_skip(self) -> bool:
        """Whether all optimisers read `found_inf`, as fused ones do."""
        return all(part.defaults.get("fused", False) for part in self.parts)

    def skip_where(self, found_inf: Tensor) -> None:
        """Skip steps while a scalar on the device is 1 (`GradScaler`'s convention); keeps a reference to it."""
        for part in self.parts:
            part.grad_scale, part.found_inf = None, found_inf  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """The state tensors of a weight (not copies); empty before its first step."""
        return next((part.state[weight] for part in self.parts if weight in part.state), {})

    def state_dict(self) -> dict[str, Any]:
        """States by index of the weight, counted over all optimisers; without hyper-parameters."""
        state: dict[int, dict[str, Tensor]] = {}
        offset = 0
        for part in self.parts:
            state |= {offset + index: entry for index, entry in part.state_dict()["state"].items()}
            offset += _count(part)
        return {"state": state, "param_groups": []}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Restore the output of `state_dict`; hyper-parameters stay unchanged."""
        offset = 0
        for part in self.parts:
            mine = {i - offset: entry for i, entry in found["state"].items() if 0 <= i - offset < _count(part)}
            part.load_state_dict({"state": mine, "param_groups": part.state_dict()["param_groups"]})
            offset += _count(part)


def _count(optimiser: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimiser.param_groups)


def build_optimiser(network: Network, spec: Optimiser, heads: nn.Module | None = None) -> Optimisers:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), with weight decay on matrices only.

    Under `muon`, Muon updates the matrices of attention and MLP (Jordan et al. 2024; updates scaled to AdamW's size as
    in Liu et al., arXiv 2502.16982), and AdamW the rest at the same learning rate. A group's `scale` multiplies the
    learning rate: `encoder_lr_factor` for the encoder's weights, else 1.

    Raises:
        BadInput: Muon has nothing to update.
    """
    muon = {id(p) for p in hidden_matrices(network)} if spec.kind == "muon" else set()
    if spec.kind == "muon" and not muon:
        raise network.block.fault("has no matrix in the children that `hidden` names, so Muon has nothing to move")
    slow = {id(p) for p in network.encoder_parameters()} if spec.encoder_lr_factor != 1 else set()
    everything = [*network.parameters(), *(heads.parameters() if heads is not None else ())]
    parts: list[torch.optim.Optimizer] = []
    rest = [p for p in everything if id(p) not in muon]
    groups = _groups([p for p in rest if p.dim() >= 2], slow, spec, spec.weight_decay)
    groups += _groups([p for p in rest if p.dim() < 2], slow, spec, 0.0)
    parts.append(torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), fused=True))
    if muon:
        groups = _groups([p for p in everything if id(p) in muon], slow, spec, spec.weight_decay)
        parts.append(torch.optim.Muon(groups, lr=spec.lr, momentum=spec.momentum, adjust_lr_fn="match_rms_adamw"))
    return Optimisers(*parts)


def _groups(parameters: list[nn.Parameter], slow: set[int], spec: Optimiser, decay: float) -> list[dict[str, Any]]:
    split = (
        ([p for p in parameters if id(p) not in slow], 1.0),
        ([p for p in parameters if id(p) in slow], spec.encoder_lr_factor),
    )
    return [{"params": ps, "weight_decay": decay, "scale": scale} for ps, scale in split if ps]


def hidden_matrices(network: Network) -> list[nn.Parameter]:
    """Matrices of attention and MLP. Not adaLN's: they start at zero, and an orthogonal update would be too large."""
    blocks = (block for block in network.blocks if isinstance(block, Block))
    parts: list[nn.Module] = [getattr(block, name) for block in blocks for name in block.hidden]
    return [p for part in parts for p in part.parameters() if p.dim() == 2]
