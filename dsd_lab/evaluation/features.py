"""Feature extractors for torch-fidelity: uint8 RGB images -> features and class scores.

Importing this module registers `dsd-lab-indomain` and `dsd-lab-dinov2` with torch-fidelity, whose functions then use the
same networks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import create_feature_extractor

from dsd_lab.core.data.splits import as_floats
from dsd_lab.errors import BadInput
from dsd_lab.evaluation.dinov2 import dinov2_features, dinov2_network
from dsd_lab.evaluation.extractor import FEATURES, extractor_of
from dsd_lab.evaluation.pretrained import WEIGHTS
from dsd_lab.files.bounded import read_plain

INDOMAIN, INCEPTION, DINOV2 = "dsd-lab-indomain", "inception-v3-compat", "dsd-lab-dinov2"
_LAYERS = {INDOMAIN: [str(FEATURES), "scores"], INCEPTION: ["2048", "logits_unbiased"], DINOV2: ["cls", "scores"]}
_BATCHES = {INDOMAIN: 512, INCEPTION: 64, DINOV2: 64}
SPATIAL_CHANNELS = 7
"""Channels of Inception's feature map in ADM's sFID: 7 x 17 x 17 = 2,023 features."""


class Features(NamedTuple):
    """Outputs of an extractor for N images, on the CPU."""

    features: Tensor
    """[N, D]."""
    scores: Tensor
    """Class scores [N, K]; K is 0 for an extractor without classes."""
    spatial: Tensor | None = None
    """Inception's spatial features [N, 2023] for sFID, or None."""


class IndomainExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The in-domain extractor; of grey images it uses one of the three equal channels."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: Path | None = None, **unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise BadInput(f"{name}: needs weights; give feature_extractor_weights_path")
        self.network = extractor_of(load_file(feature_extractor_weights_path))
        self.channels = self.network.body[0].in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] uint8 -> the features in `features_list`, in that order."""
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


class DinoExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """DINOv2's class token as in FD-DINOv2 (Stein et al., arXiv 2306.04675): images are resized to 224 pixels, bicubic.

    torch-fidelity's own DINOv2 extractor accepts no weights file and resizes differently.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise BadInput(f"{name}: needs weights; give feature_extractor_weights_path")
        self.network = dinov2_network(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] uint8 -> the features in `features_list`, in that order."""
        found = {"cls": dinov2_features(self.network, x), "scores": x.new_zeros(len(x), 0).float()}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "cls", "scores"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "cls"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)


register_feature_extractor(INDOMAIN, IndomainExtractor)
register_feature_extractor(DINOV2, DinoExtractor)

_MAX_WEIGHTS_BYTES = 2**31
"""Maximum size of a weights file in bytes."""


def indomain(path: Path) -> FeatureExtractorBase:
    """The in-domain extractor with the weights in a cached file."""
    return _created(INDOMAIN, path)


def inception(path: Path) -> FeatureExtractorBase:
    """torch-fidelity's Inception-v3 with the weights in a file, whose hash is checked.

    Raises:
        BadInput: the file does not have the pinned hash.
    """
    return _created(INCEPTION, _pinned("inception", path))


def dinov2(path: Path) -> FeatureExtractorBase:
    """DINOv2 with the weights in a file, whose hash is checked.

    Raises:
        BadInput: the file does not have the pinned hash.
    """
    return _created(DINOV2, _pinned("dinov2", path))


def _pinned(name: str, path: Path) -> io.BytesIO:
    raw = read_plain(path, _MAX_WEIGHTS_BYTES)
    if hashlib.sha256(raw).hexdigest() != WEIGHTS[name].sha256:
        raise BadInput(f"{path}: is not {WEIGHTS[name].file}; run `dsd-lab fetch-weights {name}`")
    tensors = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    clean = (
        io.BytesIO()
    )  # torch-fidelity unpickles its file, so it gets one that was written here and holds only tensors
    torch.save(tensors, clean)
    clean.seek(0)
    return clean


def _created(name: str, weights: Path | io.BytesIO) -> FeatureExtractorBase:
    given = {"cuda": False, "verbose": False, "feature_extractor_weights_path": weights}
    return create_feature_extractor(name, _LAYERS[name], **given)


def digest_name(extractor: FeatureExtractorBase) -> str:
    """The name of an extractor and a hash of its weights: two weights files of one extractor have different names."""
    digest = hashlib.sha256()
    for name, value in extractor.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return f"{extractor.name}-{digest.hexdigest()[:8]}"


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """Convolutions and matrix products in float32 while the block lasts, on any device."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def extract(
    extractor: FeatureExtractorBase,
    pixels: Tensor | Iterable[Tensor],
    device: torch.device,
    spatial: bool = False,
) -> Features:
    """Features and class scores, on the CPU, of uint8 images [N, C, H, W] in one tensor or in blocks.

    Computes convolutions and matrix products in float32: TF32 would round their inputs to 10 bits, and features from CPU
    and GPU are compared.

    Args:
        extractor: network; it is moved to the device.
        pixels: images.
        device: device of the computation.
        spatial: also return Inception's spatial features for ADM's sFID: the first 7 channels of the TensorFlow graph's
            `mixed_6/conv:0`, which is the rectified output of `Mixed_6d.branch1x1` here.
    """
    extractor.to(device)
    blocks, size = [pixels] if isinstance(pixels, Tensor) else pixels, _BATCHES[extractor.name]
    maps: list[Tensor] = []
    hook = None
    if spatial:
        hook = extractor.Mixed_6d.branch1x1.register_forward_hook(
            lambda module, given, made: maps.append(made[:, :SPATIAL_CHANNELS].flatten(1).float().cpu())
        )
    try:
        with _no_tf32():
            found = (extractor(_rgb(chunk).to(device)) for block in blocks for chunk in block.split(size))
            parts = [(features.cpu(), scores.cpu()) for features, scores in found]
    finally:
        if hook is not None:
            hook.remove()
    features, scores = (torch.cat(each) for each in zip(*parts, strict=True))
    return Features(features, scores, torch.cat(maps) if spatial else None)


def _rgb(pixels: Tensor) -> Tensor:
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
