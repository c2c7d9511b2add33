"""The metrics that the package measures: what each is called, recorded as and shown as. Imports no torch.

Tables, figures, charts of MLflow, the names that a spec may give and what an evaluation measures by default follow from
these definitions. How a value is computed stands with `LATENT_METRICS` and in `dsd_lab.evaluation.metrics`; a plug-in's
metric gives both in one decorator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Range = tuple[float, float]
"""Lowest and highest possible value of a quantity."""
ANY: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)
POSITIVE: Range = (0.0, math.inf)


@dataclass(frozen=True)
class Metric:
    """A measured quantity."""

    name: str
    """Of a latent metric: what follows `latent/`. Of another: what a spec's `metrics` calls it."""
    label: str
    digits: int = 3
    note: str = ""
    within: Range = ANY
    """Range of the quantity, which its intervals keep."""
    unit: str = ""
    recorded: str = ""
    """Beginning of the recorded name; how it was measured follows."""
    table: bool = True
    """Whether tables have a column of it; of a latent metric also whether curves have a panel of it."""
    main: bool = False
    """Whether it is a column of MLflow's view; of samples also whether it stands beside the verdicts and in comparisons."""
    lower_is_better: bool = False
    log_scale: bool = False
    """Whether curves have it on a logarithmic axis."""
    of: Literal["latents", "samples", "encoder"] = "samples"
    """`encoder`: of held-out images' reconstructions and latents."""
    needs_classes: bool = False
    by_default: bool = True
    """Whether an evaluation that names no metrics measures it."""

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


def _latent(name: str, label: str, digits: int, note: str, within: Range = POSITIVE, **more: Any) -> Metric:
    return Metric(name, label, digits, note, within, recorded=f"latent/{name}", of="latents", **more)


def _unlisted(name: str, label: str, digits: int, note: str, within: Range = POSITIVE) -> Metric:
    return _latent(name, label, digits, note, within, table=False)


STD = _latent("std", "latent std", 3, "square root of latent/variance", main=True, log_scale=True)
"""Made from the variance where it is shown or stored; probes record the variance."""
LATENT: tuple[Metric, ...] = (
    _unlisted("variance", "latent variance", 4, "mean over channels"),
    _unlisted("spatial_variance", "spatial variance", 4, "over the tokens of an image"),
    _unlisted("total_variation", "total variation", 2, "between neighbouring tokens"),
    _latent("effective_rank/token", "effective rank, tokens", 2, "Roy and Vetterli 2007, at most the latent channels", main=True),
    _latent("effective_rank/image", "effective rank, images", 1, "effective rank of whole latents"),
    _unlisted("spectral_rank/token", "spectral rank, tokens", 2, "entropy rank of eigenvalues"),
    _unlisted("spectral_rank/image", "spectral rank, images", 1, "the same of whole latents"),
    _unlisted("rankme/image", "RankMe, images", 1, "Garrido et al. 2023"),
    _unlisted("participation_ratio/token", "participation ratio, tokens", 2, "squared sum over sum of squares of eigenvalues"),
    _unlisted("participation_ratio/image", "participation ratio, images", 1, "the same of whole latents"),
    _unlisted("stable_rank/token", "stable rank, tokens", 2, "sum over maximum of eigenvalues"),
    _unlisted("stable_rank/image", "stable rank, images", 1, "the same of whole latents"),
    _unlisted("alpha_req/image", "alpha-ReQ, images", 2, "Agrawal et al. 2022", ANY),
    _unlisted("alpha_req/image/fit_last", "last rank of alpha-ReQ's fit", 0, "at most 100"),
    _unlisted("uniformity/image", "uniformity, images", 2, "Wang and Isola 2020; 0: all equal", (-math.inf, 0.0)),
    _latent("capacity_bits/token", "capacity", 2, "information under unit-variance noise", unit="bits per token", main=True),
    _unlisted("viv/token", "VIV, tokens", 2, "least loss of a velocity prediction, arXiv 2606.03578"),
    _unlisted("viv/image", "VIV, images", 2, "the same of whole latents"),
)  # fmt: skip
"""What every probe measures of the latents; under `/pre` also of those before the normaliser."""

RANK_GAP = "rank_gap/t"
"""Beginning of the names of rank gaps; the number of the bin of t follows."""
SAME, CLASSIFIER = "same features", "features of an in-domain classifier, not Inception"


def _of_samples(name: str, label: str, digits: int, note: str, within: Range, **more: Any) -> Metric:
    return Metric(name, label, digits, note, within, **({"recorded": name} | more))


def _of_encoder(name: str, label: str, digits: int, note: str, within: Range, **more: Any) -> Metric:
    return _of_samples(name, label, digits, note, within, **({"of": "encoder"} | more))


_PROBE: dict[str, Any] = {"needs_classes": True, "by_default": False}
SAMPLE: tuple[Metric, ...] = (
    _of_samples("fid", "FID", 2, f"lower is better; {CLASSIFIER}", POSITIVE, main=True, lower_is_better=True),
    _of_samples("sfid", "sFID", 2, "lower is better; spatial features of Inception-v3 (ADM's 7 channels of 17 x 17)", POSITIVE, lower_is_better=True, by_default=False),
    _of_samples("kid", "KID", 3, f"lower is better; {SAME}", ANY, lower_is_better=True),
    _of_samples("is", "inception score", 2, "higher is better; at most the extractor's number of classes", (1.0, math.inf)),
    _of_samples("precision", "precision", 3, f"fraction of samples within the manifold of real images; {SAME}, as many real images as samples", SHARE),
    _of_samples("recall", "recall", 3, f"fraction of real images within the manifold of samples; {SAME}", SHARE),
    _of_samples("label_accuracy", "label accuracy", 3, "how often that classifier predicts the label a sample was drawn for", SHARE, main=True, needs_classes=True),
    _of_samples("nearest_train", "nearest training image", 1, "median RMS distance in grey levels", (0.0, 255.0), recorded="memorisation/nearest_train"),
    _of_encoder("rfid", "rFID", 2, f"held-out reconstructions against their originals; {SAME}", POSITIVE, lower_is_better=True),
    _of_encoder("psnr", "PSNR", 1, "held-out reconstructions, mean over images", POSITIVE, unit="dB"),
    _of_encoder("ssim", "SSIM", 3, "held-out reconstructions, mean over images", (-1.0, 1.0)),
    _of_encoder("knn", "kNN accuracy", 3, "held-out images classified by their nearest training latents", SHARE, recorded="probe/knn", **_PROBE),
    _of_encoder("linear", "linear probe accuracy", 3, "held-out images classified by a linear classifier of latents", SHARE, recorded="probe/linear", **_PROBE),
)  # fmt: skip
"""What an evaluation can measure, in the order in which it is recorded and shown."""
FID = SAMPLE[0].recorded + "/"
BESIDE_SAMPLES = tuple(metric.recorded + "/" for metric in SAMPLE if metric.main)
"""Beginnings of the recorded names of evaluations that stand beside the latents."""


def fids(names: Iterable[str]) -> list[str]:
    """The FIDs among recorded names, in a fixed order: where one is shown, it is the first."""
    return sorted(name for name in names if name.startswith(FID))
