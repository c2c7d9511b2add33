"""Auxiliary losses: those that the paper (arXiv 2511.14716) adds to reconstruction and diffusion, with their heads.

Heads are not part of `Network`: they are trained and checkpointed with it, but not deployed. A plug-in's loss is a
subclass of `Auxiliary`; its weight is in the spec's `auxiliary.extra`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsd_lab.core.diffusion.paths import Path
from dsd_lab.core.model.backbones import Backbone
from dsd_lab.core.model.blocks import in_float32
from dsd_lab.core.model.perceptual import Perceptual
from dsd_lab.core.randomness import generator
from dsd_lab.core.shapes import scalar
from dsd_lab.specs.auxiliary import EMA
from dsd_lab.specs.registry import Parts
from dsd_lab.specs.sources import named_backbones

if TYPE_CHECKING:
    from dsd_lab.core.model.network import Network
    from dsd_lab.core.randomness import Draws
    from dsd_lab.specs.trial import Trial


AUXILIARIES = Parts("auxiliary")
"""Name -> subclass of `Auxiliary`."""


@dataclass
class Tokens:
    """Outputs [B, T, width] of each block, first to last, of three forward passes; None where no loss reads them.

    `encode`: the online encoder. `denoise`: the denoiser in the diffusion loss. `target`: the EMA encoder.
    """

    encode: list[Tensor] | None = None
    denoise: list[Tensor] | None = None
    target: list[Tensor] | None = None


@dataclass(frozen=True)
class Seen:
    """Inputs of an auxiliary loss: images x [B, C, H, W], latents z [B, T, c], draws, path and tokens.

    `settled` [B, T, c] are the latents normalised by running statistics; None unless a loss has `reads_settled`.
    """

    network: Network
    x: Tensor
    z: Tensor
    draws: Draws
    path: Path
    tokens: Tokens = field(default_factory=Tokens)
    settled: Tensor | None = None


class Auxiliary(nn.Module, ABC):
    """A loss term with its trained heads; `reads` names the fields of `Tokens` that it needs."""

    reads: frozenset[str] = frozenset()
    reads_settled = False
    """Whether it reads `Seen.settled`."""
    backbone: Backbone | None = None

    def __init__(self, trial: Trial, network: Network, classes: int, device: torch.device) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, seen: Seen) -> Tensor:
        """The unweighted loss, a scalar."""


def _mlp(inside: int, hidden: int, outside: int, layers: int) -> nn.Sequential:
    widths = [inside, *[hidden] * (layers - 1), outside]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*parts[:-1])


@AUXILIARIES.add("alignment")
class Alignment(Auxiliary):
    """REPA's loss (Yu et al., arXiv 2410.06940): minus the mean over tokens of cos(h(token), target), h a 3-layer MLP.

    The paper calls it "ViT layer alignment". Tokens are those of the online encoder or of the denoiser. Targets are
    the EMA encoder's tokens, or features of a frozen vision model pooled to the grid of the tokens; they have no
    gradient. With several layers, the loss is their mean.

    `alignment_noised` decides whether the loss on denoiser tokens reaches the encoder through z_t, independently of
    the diffusion loss.

    `alignment_encoder` is REPA-E's variant (Leng et al., arXiv 2504.10483, train_repae.py). A second pass with this
    weight trains only the encoder. It has the same times and noise, labels before label drop, and latents normalised
    by running statistics, so that their scale has a gradient. Only its gradient is added, not its value.
    """

    def __init__(self, trial: Trial, network: Network, classes: int, device: torch.device) -> None:
        super().__init__(trial, network, classes, device)
        spec, width = trial.auxiliary, trial.network.width
        assert width is not None
        self.role, self.noised = spec.alignment_from, spec.alignment_noised
        self.layers, self.target_layers = spec.alignment_layers, spec.alignment_target_layers
        self.own_pass = self.role == "denoise" and self.noised != trial.objective.noised
        self.encoder_share = spec.alignment_encoder / spec.alignment
        """Weight of the encoder's pass, relative to the weight of this loss."""
        self.reads_settled = self.encoder_share > 0
        widths = [width] * len(self.layers)
        if spec.alignment_to != EMA:
            named = named_backbones(trial)["alignment"]
            self.backbone = Backbone(named, self.target_layers, lambda reduction: network.side * reduction, device)
            widths = self.backbone.channels
        reads = set() if self.own_pass else {self.role}
        self.reads = frozenset(reads | {"target"} if self.backbone is None else reads)
        self.heads = nn.ModuleList(_mlp(width, spec.head_width, outside, layers=3) for outside in widths)

    def forward(self, seen: Seen) -> Tensor:
        targets = self._targets(seen)
        loss = self._misalignment(self._tokens(seen), targets)
        return loss + self.encoder_share * self._through_latents(seen, targets) if self.encoder_share > 0 else loss

    def _misalignment(self, tokens: list[Tensor], targets: list[Tensor]) -> Tensor:
        cosines = [
            functional.cosine_similarity(head(tokens[layer]).float(), target.float(), dim=-1).mean()
            for head, layer, target in zip(self.heads, self.layers, targets, strict=True)
        ]
        return -torch.stack(cosines).mean()

    def _through_latents(self, seen: Seen, targets: list[Tensor]) -> Tensor:
        """Zero with the gradient of the loss with respect to the latents; denoiser and heads are constant."""
        assert seen.settled is not None and seen.draws.labels is not None
        with torch.enable_grad():
            z, hidden_states = seen.settled.detach().requires_grad_(), list[Tensor]()
            z_t = seen.path.noised(z, seen.draws.e, seen.draws.t)
            seen.network.denoise(z_t, seen.draws.t, seen.draws.labels, hidden_states)
            (slope,) = torch.autograd.grad(self._misalignment(hidden_states, targets), z)
        return ((seen.settled - z.detach()) * slope).sum()

    def _tokens(self, seen: Seen) -> list[Tensor]:
        if not self.own_pass:
            found = getattr(seen.tokens, self.role)
            assert found is not None
            return found
        hidden_states: list[Tensor] = []
        z = seen.z if self.noised == "live" else seen.z.detach()
        z_t = seen.path.noised(z, seen.draws.e, seen.draws.t)
        seen.network.denoise(z_t, seen.draws.t, seen.draws.y, hidden_states)
        return hidden_states

    @torch.no_grad()
    def _targets(self, seen: Seen) -> list[Tensor]:
        if self.backbone is None:
            assert seen.tokens.target is not None
            return [seen.tokens.target[layer] for layer in self.target_layers]
        side = (seen.network.side, seen.network.side)
        features = self.backbone.features(seen.x)
        return [functional.adaptive_avg_pool2d(part, side).flatten(2).transpose(1, 2) for part in features]


@AUXILIARIES.add("representation")
class Representation(Auxiliary):
    """BYOL's loss (Grill et al., arXiv 2006.07733, eq. 2) on mean encoder tokens: 2 - 2 cos(q(h), sg(h')).

    h comes from the online encoder, which sees unmasked tokens only; h' comes from the EMA encoder, which sees all
    tokens. The predictor q is a 2-layer MLP. There is no projector and no second view (ours).
    """

    reads = frozenset({"encode", "target"})

    def __init__(self, trial: Trial, network: Network, classes: int, device: torch.device) -> None:
        super().__init__(trial, network, classes, device)
        width = trial.network.width
        assert width is not None
        self.predictor = _mlp(width, trial.auxiliary.head_width, width, layers=2)

    def forward(self, seen: Seen) -> Tensor:
        assert seen.tokens.encode is not None and seen.tokens.target is not None
        online, target = (tokens[-1].mean(1) for tokens in (seen.tokens.encode, seen.tokens.target))
        cosine = functional.cosine_similarity(self.predictor(online).float(), target.detach().float(), dim=-1)
        return (2 - 2 * cosine).mean()


@AUXILIARIES.add("classification")
class Classification(Auxiliary):
    """Cross entropy in nats of a linear classifier on the mean latent, or on the encoder's mean token."""

    def __init__(self, trial: Trial, network: Network, classes: int, device: torch.device) -> None:
        super().__init__(trial, network, classes, device)
        width = trial.network.width
        assert width is not None
        self.source = trial.auxiliary.classification_from
        self.reads = frozenset({"encode"} if self.source == "encode" else ())
        self.classifier = nn.Linear(width if self.source == "encode" else network.latent_channels, classes)

    def forward(self, seen: Seen) -> Tensor:
        assert seen.draws.labels is not None
        if self.source == "latent":
            features = seen.z
        else:
            assert seen.tokens.encode is not None
            features = seen.tokens.encode[-1]
        return functional.cross_entropy(in_float32(self.classifier, features.mean(1)), seen.draws.labels)


class Auxiliaries(nn.Module):
    """The auxiliary losses with a non-zero weight, and the perceptual loss. The parameters are those of the heads.

    Args:
        trial: its `auxiliary` and `objective` have the weights.
        network: gives the sizes of the heads.
        classes: number of classes.
        device: device of frozen models; heads are moved with `.to`.
        seed: seed of the heads' weights.

    Raises:
        BadInput: a frozen model is unknown, or its weights cannot be loaded.
    """

    def __init__(self, trial: Trial, network: Network, classes: int, device: torch.device, seed: int = 0) -> None:
        super().__init__()
        losses: dict[str, Auxiliary] = {}
        shipped = {name: getattr(trial.auxiliary, name, 0.0) for name in AUXILIARIES}
        weights = {name: float(w) for name, w in (shipped | trial.auxiliary.extra).items() if w > 0}
        with torch.random.fork_rng(devices=[]):
            for name in weights:
                torch.manual_seed(generator(seed, f"auxiliary/{name}").initial_seed())
                losses[name] = AUXILIARIES.bound(name, trial.auxiliary)(trial, network, classes, device)
        self.losses = losses
        self.heads = nn.ModuleDict(losses)
        named = named_backbones(trial).get("perceptual")
        self.perceptual = None if named is None else Perceptual(named, network.side * network.patch, device)
        self.weights = weights

    @property
    def reads_settled(self) -> bool:
        """Whether some loss reads latents normalised by running statistics."""
        return any(loss.reads_settled for loss in self.losses.values())

    def tokens(self) -> Tokens:
        """Empty lists for the tokens that some loss reads."""
        read = {name for loss in self.losses.values() for name in loss.reads}
        return Tokens(**{name: [] for name in read})

    def terms(self, seen: Seen, target_encoder: Network | None) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, unweighted loss)."""
        if seen.tokens.target == []:  # the diffusion loss did not run the target encoder
            assert target_encoder is not None
            with torch.no_grad():
                target_encoder.encode_raw(seen.x, hidden_states=seen.tokens.target)
        found = {name: (self.weights[name], loss(seen)) for name, loss in self.losses.items()}
        for name, (_, value) in found.items():
            if (wrong := scalar(value)) is not None:
                raise AUXILIARIES.part(name).fault(wrong)
        return found

    def frozen_parameters(self) -> int:
        """Number of parameters of the frozen models."""
        return sum(backbone.parameters() for backbone in self.backbones())

    def backbones(self) -> list[Backbone]:
        """The frozen models."""
        found = [loss.backbone for loss in self.losses.values()]
        found += [] if self.perceptual is None else [self.perceptual.backbone]
        return [backbone for backbone in found if backbone is not None]
