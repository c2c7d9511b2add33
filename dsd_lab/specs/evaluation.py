"""Fields of an evaluation: how samples are drawn, and which metrics are computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dsd_lab.specs.metrics import SAMPLE
from dsd_lab.specs.part_fields import Choice, PartSection
from dsd_lab.specs.protocols import PROTOCOLS, with_protocol
from dsd_lab.specs.registry import trait

Metric = Annotated[str, Choice("sample_metric")]
OF_IMAGES = tuple(metric.name for metric in SAMPLE if metric.of == "samples")
"""Metrics of generated images."""
OF_ENCODER = tuple(metric.name for metric in SAMPLE if metric.of == "encoder")
"""Metrics of held-out images' reconstructions and latents."""
_OF_CLASSES = tuple(metric.name for metric in SAMPLE if metric.needs_classes)
"""Metrics that need two or more classes."""
_UNKNOWN_TO = {"indomain": ("sfid",), "inception": ("label_accuracy",), "dinov2": ("sfid", "is", "label_accuracy")}
"""Metrics that an extractor cannot give."""


def recorded_as(metric: str) -> str:
    """First part of the name under which a metric is recorded; a plug-in's is a `sample`."""
    return next((m.recorded.partition("/")[0] for m in SAMPLE if m.name == metric), "sample")


def _or_list(schema: dict[str, Any]) -> None:
    """JSON Schema for editors: a value, or a list of values, which is expanded before validation."""
    notes: dict[str, Any] = {k: schema.pop(k) for k in ("default", "description", "title") if k in schema}
    one = dict(schema)
    schema.clear()
    schema |= notes | {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


class Generation(PartSection):
    """An evaluation of a finished trial: how samples are drawn, and which metrics are computed."""

    protocol: Literal["adm", "jit", "repa"] | None = None
    """A published way of measuring: fixes sampler, steps, labels, number of images, guidance interval, precision and extractor, and asks for its `reference` (docs/metrics.md has the values and what they are taken from). A field beside it that says otherwise is refused. Guidance, weights, checkpoint and metrics stay free. It is no part of an evaluation's identity: the same settings spelled out are the same evaluation."""
    sampler: Annotated[str, Choice("sampler")] = "heun"
    """`euler`, `heun` and `dopri5` (adaptive) solve the probability-flow ODE. `sde`: Euler-Maruyama on the SDE with the same marginals; its last step starts at t = 0.96 and has no noise, as in SiT and REPA."""
    steps: int = Field(25, ge=1, le=10_000)
    """Solver steps. Heun calls the network twice per step, except in the last. `dopri5` chooses its own steps."""
    rtol: float = Field(1e-5, gt=0, le=1)
    """Relative tolerance per step of `dopri5` (ours)."""
    atol: float = Field(1e-5, gt=0, le=1)
    """Absolute tolerance per step of `dopri5`, in units of the latents (ours)."""
    guidance: float = Field(1.0, ge=0, le=100, json_schema_extra=_or_list)
    """Classifier-free guidance scale; 1 is no guidance. A list makes one evaluation per value."""
    guidance_interval: list[float] | None = Field(None, min_length=2, max_length=2)
    """[lo, hi]: times t with guidance; `guidance_ends` says whether the ends are included. Default: all times."""
    guidance_ends: Literal["closed", "open"] = "closed"
    """`closed`: guidance where lo <= t <= hi, as in REPA's sampler. `open`: where lo < t < hi, and at t = 0 if lo is 0, as in JiT's. The two differ if a solver step falls on an end."""
    weights: Literal["ema", "trained"] | Annotated[str, Field(pattern=r"^ema:0?\.\d{1,12}$")] = Field(
        "ema", json_schema_extra=_or_list
    )
    """`ema`: the averaged weights. `trained`: the weights of the last step. `ema:DECAY`: the average with one of `training.extra_ema_decays`. A list makes one evaluation per value."""
    checkpoint: int | Literal["last", "all"] = Field("last", json_schema_extra=_or_list)
    """Step of the checkpoint: `last`, or a step that `observation.keep_every` kept. `all` makes one evaluation per kept checkpoint and one of the last. A list makes one evaluation per value."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network while it samples; `bf16` as in `training.precision`."""
    images: int | Literal["holdout"] = "holdout"
    """Number of samples. `holdout`: one sample per held-out image, with its label, so that the FID between real images (the floor) has the same N and class frequencies. A number: that many, labelled as `labels` says."""
    labels: Literal["balanced", "random", "training"] = "balanced"
    """Labels when `images` is a number. `balanced`: every class equally often. `random`: drawn uniformly. `training`: class frequencies of the training images, to within one image."""

    extractor: Literal["indomain", "inception", "dinov2"] = "indomain"
    """Features in which samples are compared. `indomain`: a classifier trained on the data set; without classes, a network trained to predict rotations by 90 degrees and a downscaled image. `inception`: Inception-v3. `dinov2`: DINOv2's ViT-L/14, for FD-DINOv2 (Stein et al., arXiv 2306.04675). `dsd-lab fetch-weights` downloads the weights of the last two. Reports keep them in separate columns."""
    inception_weights: str | None = None
    """File of Inception's weights, relative to the spec file; its SHA-256 is checked. Default: the file in the home folder. Not part of an evaluation's identity."""
    dinov2_weights: str | None = None
    """The same for DINOv2's weights."""
    reference: str | None = None
    """Statistics for FID instead of those of the training images: an .npz with `mu` and `sigma`, as written by ADM and pytorch-fid (for `sfid` with ADM's `mu_s` and `sigma_s`), relative to the spec file. Its hash is part of the identity, its path is not."""
    reference_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of that file: checked if given, otherwise filled in."""
    metrics: list[Metric] | None = Field(None, min_length=1)
    """Metrics to compute. Default: all that the extractor can give except `sfid` (FID of Inception's spatial features), and `knn` and `linear`, which encode the training images and fit to them."""

    @property
    def adaptive(self) -> bool:
        """Whether the sampler chooses its steps by `rtol` and `atol`; for a plug-in's, its trait `adaptive`."""
        return self.sampler == "dopri5" or bool(trait("sampler", self.sampler, "adaptive", False))

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics, in a fixed order."""
        usual = {metric.name for metric in SAMPLE if metric.by_default} - {*_UNKNOWN_TO[self.extractor]}
        chosen = usual if self.metrics is None else set(self.metrics)
        return (*(m for m in (*OF_IMAGES, *OF_ENCODER) if m in chosen), *sorted(chosen - {*OF_IMAGES, *OF_ENCODER}))

    @property
    def of_images(self) -> tuple[str, ...]:
        """The metrics of generated images, including plug-ins' metrics."""
        return tuple(m for m in self.measured if m not in OF_ENCODER)

    @model_validator(mode="before")
    @classmethod
    def _of_protocol(cls, given: Any) -> Any:
        return with_protocol(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _enough(self) -> Generation:
        if isinstance(self.checkpoint, int) and not 1 <= self.checkpoint <= 10**9:
            raise ValueError(f"checkpoint: {self.checkpoint} is not between 1 and 1,000,000,000")
        if isinstance(self.images, int) and not 2 <= self.images <= 10**6:
            raise ValueError(f"images: {self.images} is not between 2 and 1,000,000")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high <= 1:
                raise ValueError(f"guidance_interval: {self.guidance_interval} is not [lo, hi] with 0 <= lo < hi <= 1")
        for metric in _UNKNOWN_TO[self.extractor]:
            if metric in (self.metrics or ()):
                knows = [name for name, unknown in _UNKNOWN_TO.items() if metric not in unknown]
                raise ValueError(f"metrics: {metric} needs `extractor: {' or '.join(knows)}`, not {self.extractor}")
        for name in ("inception", "dinov2"):
            if self.extractor != name and getattr(self, f"{name}_weights") is not None:
                raise ValueError(f"{name}_weights: belongs to `extractor: {name}`")
        if self.protocol is not None and self.reference is None:
            wanted = PROTOCOLS[self.protocol].reference
            raise ValueError(f"reference: protocol {self.protocol!r} measures against {wanted}; name that file")
        if self.reference is None and self.reference_sha256 is not None:
            raise ValueError("reference_sha256: belongs to a `reference`")
        if self.reference is not None and not {"fid", "sfid"} & set(self.measured):
            raise ValueError(
                "reference: only `fid` and `sfid` are measured against statistics, and `metrics` leaves them out"
            )
        return self


def without_classes(evaluation: Generation) -> str:
    """Why an evaluation is impossible on data with fewer than two classes; empty if it is possible."""
    if evaluation.guidance != 1:
        return f"guidance {evaluation.guidance:g} has nothing to guide towards; write `guidance: 1`"
    asked = [name for name in evaluation.metrics or () if name in _needing_classes(evaluation)]
    return f"metrics {', '.join(asked)} have no meaning; remove them" if asked else ""


def of_no_classes(evaluation: Generation) -> Generation:
    """The evaluation without the metrics that need classes."""
    left_out = _needing_classes(evaluation)
    return evaluation.model_copy(update={"metrics": [name for name in evaluation.measured if name not in left_out]})


def _needing_classes(evaluation: Generation) -> tuple[str, ...]:
    """Metrics that need classes; the inception score is one of them for `extractor: indomain`."""
    return (*_OF_CLASSES, "is") if evaluation.extractor == "indomain" else _OF_CLASSES
