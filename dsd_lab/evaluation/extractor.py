"""The in-domain feature extractor: a small network trained on the training split of the data set.

With two or more classes it is a classifier. Otherwise a classifier's loss would be 0 from the start and its features
random. The network then predicts by which multiple of 90 degrees an image was rotated (Gidaris et al., arXiv 1803.07728),
which needs shapes and positions, and a downscaled copy of the rotated image, which needs colour and brightness and also
works for images without an upright orientation.

It gives generation metrics without a download. They compare variants on one data set, and are not an Inception FID: their
names contain `indomain`, and they have separate columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dsd_lab.core.data.splits import as_floats
from dsd_lab.core.randomness import batch_indices, generator
from dsd_lab.files.atomic import write_atomic
from dsd_lab.files.locks import locked
from dsd_lab.home.names import extractor_path

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet, Split

FEATURES = 64
_BASE_SIDE = 32
"""Side in pixels; from twice this size on, the first convolution has a stride."""
_BATCH, _EPOCHS, _MAX_STEPS, _LR = 64, 20, 1500, 2e-3
_ROTATIONS, _SMALL_SIDE = 4, 8
"""For data without classes: number of rotations, and side of the downscaled image in pixels."""
_MIN_STEPS = 300
"""Minimum number of training steps for data without classes: with few images, learning needs many epochs."""


class Extractor(nn.Module):
    """Convolutions that halve the image down to at most 4 pixels per side, then 64 features and class scores.

    For images above 63 pixels, the first convolution reduces the side to 32 to 63, so that training takes minutes on one
    core.
    """

    def __init__(self, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        stride = max(1, image_size // _BASE_SIDE)
        first = nn.Conv2d(channels, 32, 2 * stride + 1, stride, padding=stride)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(32), nn.ReLU()]
        width, side = 32, -(-image_size // stride)
        while side > 4 or width < FEATURES:
            layers += [nn.Conv2d(width, FEATURES, 3, stride=2, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU()]
            width, side = FEATURES, -(-side // 2)
        layers += [nn.Conv2d(width, FEATURES, 3, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scores = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] in [-1, 1] -> features [B, 64], class scores [B, classes]."""
        features = self.body(x)
        return features, self.scores(features)

    @torch.no_grad()
    def extract(self, images: Tensor | Split, device: torch.device, batch: int = 512) -> tuple[Tensor, Tensor]:
        """Features [N, 64] and predicted classes [N] of uint8 images [N, C, H, W] or of a split, on the CPU."""
        features, predicted = [], []
        for pixels in images.split(batch) if isinstance(images, Tensor) else (p for p, _ in images.batches(batch)):
            found, scores = self(as_floats(pixels.to(device)))
            features.append(found.cpu())
            predicted.append(scores.argmax(1).cpu())
        return torch.cat(features), torch.cat(predicted)


def extractor_of(tensors: dict[str, Tensor]) -> Extractor:
    """The extractor with these weights, by name."""
    convolutions = sum(value.dim() == 4 for value in tensors.values())
    halvings, stride = convolutions - 2, (tensors["body.0.weight"].shape[-1] - 1) // 2
    # An image size with this number of convolutions: the first leaves 32 to 63 pixels, which are halved 3 or 4 times.
    size = 4 * 2**halvings if halvings < 3 else _BASE_SIDE * stride + (_BASE_SIDE - 1) * (halvings - 3)
    network = Extractor(tensors["body.0.weight"].shape[1], size, len(tensors["scores.weight"]))
    network.load_state_dict(tensors)
    return network.eval()


def outputs_of(data: DataSet) -> int:
    """Number of outputs of a data set's extractor: classes, or rotations plus values of the downscaled image."""
    side = min(_SMALL_SIDE, data.image_size)
    return data.classes if data.conditional else _ROTATIONS + data.channels * side * side


def load_extractor(data: DataSet, cache: Path, device: torch.device) -> Extractor:
    """The extractor of a data set, trained once and cached under the data's fingerprint."""
    path = extractor_path(cache, data.fingerprint, data.conditional)
    network = Extractor(data.channels, data.image_size, outputs_of(data))
    with locked(path.with_suffix(".lock")):
        if not _loaded(network, path):
            trained = _train(data, device)
            write_atomic(path, save({k: v.cpu().contiguous() for k, v in trained.state_dict().items()}))
            network.load_state_dict(load_file(path))
    return network.to(device).eval()


def _loaded(network: Extractor, path: Path) -> bool:
    """Load the network from the cache; False if the file is missing or damaged."""
    try:
        network.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError):
        return False
    return True


def _train(data: DataSet, device: torch.device) -> Extractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(0, "extractor").initial_seed())
        network = Extractor(data.channels, data.image_size, outputs_of(data)).to(device).train()
    steps = min(_MAX_STEPS, max(0 if data.conditional else _MIN_STEPS, _EPOCHS * len(data.train) // _BATCH))
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LR, total_steps=max(2, steps + 1))
    for step in range(steps):
        x, y = data.train.at(batch_indices(0, step, _BATCH, len(data.train)), device)
        data.train.prefetch([batch_indices(0, step + 1, _BATCH, len(data.train))] if step + 1 < steps else [])
        optimiser.zero_grad(set_to_none=True)
        if data.conditional:
            loss = nn.functional.cross_entropy(network(x)[1], y, label_smoothing=0.1)
        else:
            turning, painting = turning_losses(network, x, step)
            loss = turning + painting
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def turning_losses(network: Extractor, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Losses for data without classes: cross entropy of the rotation, and squared error of the downscaled image.

    Args:
        network: its outputs are the scores of the rotations, then the values of the downscaled rotated image.
        x: images [B, C, S, S] in [-1, 1].
        step: training step, which determines the rotations.
    """
    turns = torch.randint(_ROTATIONS, (len(x),), generator=generator(0, "turns", step)).to(x.device)
    turned = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(x, turns.tolist(), strict=True)])
    scores = network(turned)[1]
    small = nn.functional.adaptive_avg_pool2d(turned, min(_SMALL_SIDE, x.shape[-1])).flatten(1)
    return nn.functional.cross_entropy(scores[:, :_ROTATIONS], turns), nn.functional.mse_loss(
        scores[:, _ROTATIONS:], small
    )
