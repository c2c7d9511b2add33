"""An in-domain feature extractor: a small network trained on the data set's own training split.

Where the data has classes, it is a classifier. One class teaches a classifier nothing: its loss is 0 from the start,
and the features stay random. There the network learns by which quarter turn an image was rotated (Gidaris et al.,
arXiv 1803.07728), which needs shapes and their places, and to paint the turned image small, which needs colours
and light and can be learned of any images, those without an upright position too.

It makes generation figures possible without a download. They compare variants on one data set and
are no Inception FID: names say `indomain`, and they never share a column with it.
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
_WORKED_ON = 32
"""Pixels a side from twice of which on the first convolution has a stride."""
_BATCH, _EPOCHS, _MAX_STEPS, _LR = 64, 20, 1500, 2e-3
_TURNS, _PAINTED = 4, 8
"""Quarter turns, and pixels a side of the painted image, of data without classes."""
_LEAST_STEPS = 300
"""Of the same: few images need many epochs until the features are learned ones."""


class Extractor(nn.Module):
    """Convolutions that halve the image down to 4 pixels or fewer a side, then 64 features and class scores.

    The first takes an image of more than 63 pixels a side down to 32 to 63, where the cost of training is minutes on one core.
    """

    def __init__(self, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        stride = max(1, image_size // _WORKED_ON)
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
    """The extractor whose weights these are."""
    convolutions = sum(value.dim() == 4 for value in tensors.values())
    halvings, stride = convolutions - 2, (tensors["body.0.weight"].shape[-1] - 1) // 2
    # A size that has so many: from 32 pixels on, the first convolution leaves 32 to 63, halved three or four times.
    size = 4 * 2**halvings if halvings < 3 else _WORKED_ON * stride + (_WORKED_ON - 1) * (halvings - 3)
    network = Extractor(tensors["body.0.weight"].shape[1], size, len(tensors["scores.weight"]))
    network.load_state_dict(tensors)
    return network.eval()


def outputs_of(data: DataSet) -> int:
    """Scores of the extractor of a data set: its classes, or quarter turns and the levels of a painted image."""
    side = min(_PAINTED, data.image_size)
    return data.classes if data.conditional else _TURNS + data.channels * side * side


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
    """Whether the cache held the network; a damaged file is as one that is not there."""
    try:
        network.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError):
        return False
    return True


def _train(data: DataSet, device: torch.device) -> Extractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(0, "extractor").initial_seed())
        network = Extractor(data.channels, data.image_size, outputs_of(data)).to(device).train()
    steps = min(_MAX_STEPS, max(0 if data.conditional else _LEAST_STEPS, _EPOCHS * len(data.train) // _BATCH))
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
    """What data without classes teach: cross entropy of the quarter turn, and squared error of the painted image.

    Args:
        network: whose scores are the turns' and, after them, the levels of the turned image made small.
        x: images [B, C, S, S] in [-1, 1].
        step: whose turns are drawn.
    """
    turns = torch.randint(_TURNS, (len(x),), generator=generator(0, "turns", step)).to(x.device)
    turned = torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(x, turns.tolist(), strict=True)])
    scores = network(turned)[1]
    small = nn.functional.adaptive_avg_pool2d(turned, min(_PAINTED, x.shape[-1])).flatten(1)
    return nn.functional.cross_entropy(scores[:, :_TURNS], turns), nn.functional.mse_loss(scores[:, _TURNS:], small)
