"""The metrics of an evaluation by name: of samples, of real images in place of samples, and of held-out latents."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from torch import Tensor

from dsd_lab.evaluation.distances import (
    fid,
    flags,
    frechet,
    inception_score,
    kid,
    nearest_train,
    precision_recall,
    statistics,
)
from dsd_lab.evaluation.metric_names import extractor_name, features_name, sampling_name, weights_name
from dsd_lab.evaluation.real_images import Real, pixels_of, reference_of
from dsd_lab.evaluation.reconstruction import fitted_on, psnr, representation, ssim, ssim_window
from dsd_lab.evaluation.sample_metrics import of_plugins
from dsd_lab.specs.part_fields import is_foreign

if TYPE_CHECKING:
    from dsd_lab.evaluation.drawing import Drawn
    from dsd_lab.evaluation.workspace import EvaluationCache
    from dsd_lab.specs.trial import Generation


def of_images(e: Generation, bench: EvaluationCache, samples: Drawn, y: Tensor) -> dict[str, float]:
    """Metrics of samples drawn for labels y [N]."""
    rest = f"n{len(y)}-{sampling_name(e)}-{weights_name(e, bench.trial)}"
    features, scores, spatial = bench.features(e, y)
    found: dict[str, float] = {}
    if "fid" in e.measured:
        how = f"{extractor_name(e, bench.data.conditional)}-{rest}"
        mine, reference = statistics(features), bench.reference(e)
        found[f"fid/{how}"] = distance = frechet(mine, reference)
        found |= {f"fid_flag/{why}/{how}": value for why, value in flags(mine, len(y), reference, distance).items()}
        held, real = len(bench.data.holdout), len(bench.data.holdout) + len(bench.data.train)
        if len(y) > real:
            found[f"fid_flag/few_real/{how}"] = float(real)
        elif len(y) > held:
            found[f"fid_flag/floor_with_train/{how}"] = float(len(y) - held)
    if spatial is not None:
        how = f"{extractor_name(e, bench.data.conditional)}-{rest}"
        found[f"sfid/{how}"] = frechet(statistics(spatial), bench.reference(e, spatial=True))
    more = _on_features(e, features, scores, bench.real(e))
    if "label_accuracy" in e.measured:
        more["label_accuracy"] = float((scores.argmax(1) == y).double().mean())
    if "nearest_train" in e.measured:
        train = reference_of(bench.data.train)
        more["memorisation/nearest_train"] = bench.of_samples("nearest", lambda: nearest_train(samples.whole(), train))
    named = features_name(e, bench.data.conditional)
    found |= {f"{name}/{named}-{rest}": value for name, value in more.items()}
    if any(is_foreign("sample_metric", name) for name in e.measured):
        own = of_plugins(e, samples.whole(), y, pixels_of(bench.data.holdout))
        found |= {f"{name}/{rest}": value for name, value in own.items()}
    return found


def _on_features(e: Generation, features: Tensor, scores: Tensor, real: Real) -> dict[str, float]:
    """Metrics that compare with features of the training images, whatever the reference of FID."""
    found = {}
    if "kid" in e.measured:
        found["kid"] = kid(features, real.features)
    if "is" in e.measured:
        found["is"] = inception_score(scores)
    if {"precision", "recall"} & set(e.measured):
        both = precision_recall(features, real.neighbours(len(features)))
        named = dict(zip(("precision", "recall"), both, strict=True))
        found |= {name: value for name, value in named.items() if name in e.measured}
    return found


def floors(e: Generation, bench: EvaluationCache, y: Tensor) -> dict[str, float]:
    """Metrics of real images: all held-out ones, and as many as there are samples, with the same classes.

    They do not depend on the trial, and are cached in the home folder.
    """
    data, real = bench.data, bench.real(e)
    held, how = len(data.holdout), f"{extractor_name(e, data.conditional)} {sorted(e.measured)}"
    found = dict(real.numbers(f"{how} held-out", lambda: _held_floor(e, bench)))
    if len(y) != held:
        mix = hashlib.sha256(y.bincount(minlength=data.classes).numpy().tobytes()).hexdigest()[:8]
        found |= real.numbers(f"{how} {e.labels} n{len(y)} {mix}", lambda: _floor_like(e, bench, y))
    return found


def _held_floor(e: Generation, bench: EvaluationCache) -> dict[str, float]:
    """Floor from all held-out images."""
    data, real = bench.data, bench.real(e)
    held = len(data.holdout)
    found = _floor(e, bench, *real.held[:2], f"n{held}")
    if "label_accuracy" in e.measured:
        right = float((real.held.scores.argmax(1) == data.holdout.labels).double().mean())
        found[f"label_accuracy_floor/{e.extractor}-n{held}"] = right
    if "nearest_train" in e.measured:
        far = nearest_train(pixels_of(data.holdout), reference_of(data.train))
        found[f"memorisation/nearest_train_floor/n{held}"] = far
    return found


def _floor_like(e: Generation, bench: EvaluationCache, y: Tensor) -> dict[str, float]:
    """Floor from as many real images as labels y [N], with the same classes; empty if there are too few."""
    features, scores, filled = bench.real(e).like(y)
    if len(features) != len(y):
        return {}
    where = f"{e.labels}-" + (f"withtrain{filled}-" if filled else "") + f"n{len(y)}"
    return _floor(e, bench, features, scores, where)


def _floor(e: Generation, bench: EvaluationCache, features: Tensor, scores: Tensor, where: str) -> dict[str, float]:
    real = bench.real(e)
    named = features_name(e, bench.data.conditional)
    found = {f"{k}_floor/{named}-{where}": v for k, v in _on_features(e, features, scores, real).items()}
    if "fid" in e.measured:
        distance = frechet(statistics(features), bench.reference(e))
        found[f"fid_floor/{extractor_name(e, bench.data.conditional)}-{where}"] = distance
    return found


def of_encoder(e: Generation, bench: EvaluationCache) -> dict[str, float]:
    """Metrics of held-out reconstructions, and of latents of training and held-out images."""
    data, found = bench.data, {}
    held, average = f"n{len(data.holdout)}", weights_name(e, bench.trial)
    if {"rfid", "psnr", "ssim"} & set(e.measured):
        images, originals = bench.reconstructions(e), pixels_of(data.holdout)
        if "rfid" in e.measured:
            key = ("reconstructed features", e.extractor)
            features = bench.of_weights(e, key, lambda: bench.extract(e, images)).features
            found[f"rfid/{features_name(e, data.conditional)}-{held}-{average}"] = fid(
                features, bench.real(e).held.features
            )
        if "psnr" in e.measured:
            found[f"psnr/perimage-{held}-{average}"] = psnr(images, originals)
        if "ssim" in e.measured:
            window = ssim_window(data.image_size)
            found[f"ssim/{window}-{held}-{average}"] = bench.of_weights(e, "ssim", lambda: ssim(images, originals))
    asked = tuple(m for m in ("knn", "linear") if m in e.measured)
    if asked:
        network = bench.network(e)
        fitted = bench.of_weights(e, asked, lambda: representation(network, data, bench.device, asked))
        found |= {f"probe/{name}/train{fitted_on(data)}-{held}-{average}": value for name, value in fitted.items()}
    return found
