"""One trial evaluated: weights from its checkpoint, samples of them, and the metrics that an evaluation asks for.

Samples are compared with the training images, or with published statistics. The real-against-real
floor is the same comparison for real images: all held-out ones, and as many as there are samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.errors import BadInput
from dsd_lab.evaluation.metric_names import placed
from dsd_lab.evaluation.sampling import labels_of
from dsd_lab.evaluation.workspace import Bench
from dsd_lab.home.home import Home
from dsd_lab.home.names import NOT_FINITE, finite
from dsd_lab.specs.evaluation import of_no_classes, without_classes
from dsd_lab.specs.trial import OF_ENCODER

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.trial import Generation, Trial

_SHOWN = 50


def evaluate_generation(
    evaluation: Generation,
    trial: Trial,
    checkpoints: Path,
    data: DataSet,
    device: torch.device,
    cache: Path,
    bench: Bench | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Metrics by name and the first images [n, C, H, W] uint8 that they are of.

    Names end in how they were measured (`indomain-n395-cfg1-heun25-holdout-ema0.99`), so that two
    different measurements never share a name. `psnr` and `ssim` are of held-out reconstructions. A trial
    without a denoiser has no samples: its reconstructions and latents are measured, and shown. What has
    no finite value, says nothing of data without classes, or is of weights that are not finite, is left out, and a name below `not_finite/` says so.
    """
    from dsd_lab.evaluation.metrics import floors, of_encoder, of_images  # imports torch-fidelity

    own = bench is None
    bench = bench or Bench(trial, checkpoints, data, device, Home(cache.parent))
    if not data.conditional:
        if reason := without_classes(evaluation):
            raise BadInput(f"the data has no classes: {reason}")
        evaluation = of_no_classes(evaluation)
    metrics: dict[str, float] = {}
    shown = None
    if not all(bool(p.isfinite().all()) for p in bench.network(evaluation).parameters()):
        # Their images are a chessboard, which is an image like another to an extractor.
        weights = {f"{NOT_FINITE}{placed('weights', evaluation)}/{evaluation.weights.replace(':', '')}": 1.0}
        return weights, bench.reconstructions(evaluation)[:_SHOWN]
    if trial.has_denoiser and evaluation.of_images:
        y = labels_of(evaluation, data)
        samples = bench.samples(evaluation, y)
        metrics |= of_images(evaluation, bench, samples, y)
        metrics |= floors(evaluation, bench, y)
        shown = samples.first(_SHOWN)
    if set(evaluation.measured) & set(OF_ENCODER):
        metrics |= of_encoder(evaluation, bench)
    if own:
        bench.forget_samples()
    metrics = {placed(name, evaluation): value for name, value in metrics.items()}
    return finite(metrics), (bench.reconstructions(evaluation) if shown is None else shown)[:_SHOWN]
