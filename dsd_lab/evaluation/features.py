"""The two extractors as torch-fidelity takes them: uint8 RGB images in, features and class scores out.

`dsd-lab-indomain` is registered with torch-fidelity when this module is imported, so that its own
functions and those here see the same network.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import create_feature_extractor

from dsd_lab.core.data.splits import as_floats
from dsd_lab.errors import BadInput
from dsd_lab.evaluation.extractor import FEATURES, extractor_of
from dsd_lab.evaluation.pretrained import WEIGHTS
from dsd_lab.files.bounded import read_plain

INDOMAIN, INCEPTION = "dsd-lab-indomain", "inception-v3-compat"
_LAYERS = {INDOMAIN: [str(FEATURES), "scores"], INCEPTION: ["2048", "logits_unbiased"]}
_BATCHES = {INDOMAIN: 512, INCEPTION: 64}


class IndomainExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The in-domain classifier; grey data takes one of the three equal channels."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: Path | None = None, **unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise BadInput(f"{name}: has no weights of its own; give feature_extractor_weights_path")
        self.network = extractor_of(load_file(feature_extractor_weights_path))
        self.channels = self.network.body[0].in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] uint8 -> what was asked for, in that order."""
        features, scores = self.network(as_floats(x[:, : self.channels]))
        found = {str(FEATURES): features, "scores": scores}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return str(FEATURES), "scores"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "scores" if metric == "isc" else str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


register_feature_extractor(INDOMAIN, IndomainExtractor)

_MOST_WEIGHTS = 2**30
"""Bytes of a file of weights."""


def indomain(path: Path) -> FeatureExtractorBase:
    """The extractor that a cached file holds."""
    return _created(INDOMAIN, path)


def inception(path: Path) -> FeatureExtractorBase:
    """torch-fidelity's Inception-v3 with the weights of a file; the bytes that are read are the bytes that are checked.

    Raises:
        BadInput: they are not the pinned ones.
    """
    raw = read_plain(path, _MOST_WEIGHTS)
    if hashlib.sha256(raw).hexdigest() != WEIGHTS["inception"].sha256:
        raise BadInput(f"{path}: is not {WEIGHTS['inception'].file}; run `dsd-lab fetch-weights inception`")
    tensors = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    clean = io.BytesIO()  # torch-fidelity unpickles what it is given: it is given a file of ours, of tensors alone
    torch.save(tensors, clean)
    clean.seek(0)
    return _created(INCEPTION, clean)


def _created(name: str, weights: Path | io.BytesIO) -> FeatureExtractorBase:
    given = {"cuda": False, "verbose": False, "feature_extractor_weights_path": weights}
    return create_feature_extractor(name, _LAYERS[name], **given)


@torch.no_grad()
def extract(
    extractor: FeatureExtractorBase, pixels: Tensor | Iterable[Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features [N, D] and class scores [N, K] of uint8 images [N, C, H, W], whole or in blocks, on the CPU.

    In float32 on a GPU too, whose convolutions would round to ten bits: features of both are compared.
    """
    extractor.to(device)
    blocks, size = [pixels] if isinstance(pixels, Tensor) else pixels, _BATCHES[extractor.name]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = (extractor(_rgb(chunk).to(device)) for block in blocks for chunk in block.split(size))
        parts = [(features.cpu(), scores.cpu()) for features, scores in found]
    return torch.cat([features for features, _ in parts]), torch.cat([scores for _, scores in parts])


def _rgb(pixels: Tensor) -> Tensor:
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
