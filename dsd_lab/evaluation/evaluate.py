"""Evaluates one trial: loads weights from its checkpoint, draws samples, and computes metrics.

Samples are compared with the training images, or with published statistics. The floor is the same comparison for real
images: all held-out ones, and as many as there are samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.errors import BadInput
from dsd_lab.evaluation.metric_names import placed
from dsd_lab.evaluation.sampling import labels_of
from dsd_lab.evaluation.workspace import EvaluationCache
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
    bench: EvaluationCache | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Metrics by name, and the first images [n, C, H, W] uint8.

    Names end with the settings (`indomain-n395-cfg1-heun25-holdout-ema0.99`), so that different measurements have
    different names. `psnr` and `ssim` are of held-out reconstructions. A trial without a denoiser has no samples: its
    reconstructions and latents are measured. Metrics that need classes are left out for data without them. Values that
    are not finite, and metrics of weights that are not finite, are replaced by names that start with `not_finite/`.
    """
    from dsd_lab.evaluation.metrics import floors, of_encoder, of_images  # imports torch-fidelity

    own = bench is None
    bench = bench or EvaluationCache(trial, checkpoints, data, device, Home(cache.parent))
    if not data.conditional:
        if reason := without_classes(evaluation):
            raise BadInput(f"the data has no classes: {reason}")
        evaluation = of_no_classes(evaluation)
    metrics: dict[str, float] = {}
    shown = None
    if not all(bool(p.isfinite().all()) for p in bench.network(evaluation).parameters()):
        # Their images are a checkerboard, which an extractor would treat as an ordinary image.
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
