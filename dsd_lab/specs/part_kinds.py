"""The kinds of parts, and the names of shipped parts; a test compares them with the definitions."""

from __future__ import annotations

from dataclasses import dataclass

from dsd_lab.specs.metrics import LATENT, SAMPLE


@dataclass(frozen=True)
class Kind:
    """A kind of part: the field that names it, the module that defines shipped ones, and their names."""

    field: str
    module: str
    shipped: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    """Names that a plug-in may not use, since other values are recorded under them."""
    together: bool = False
    """Whether shipped parts share one computation and have no definitions of their own."""


_DIFFUSION, _MODEL = "dsd_lab.core.diffusion", "dsd_lab.core.model"
_TERMS = ("reconstruction", "diffusion", "perceptual", "anchor", "anchor_perceptual", "entropy", "kl", "total")
KINDS: dict[str, Kind] = {
    "target": Kind("objective.target", f"{_DIFFUSION}.objectives", ("live", "stop_gradient", "ema")),
    "output": Kind("objective.output", f"{_DIFFUSION}.objectives", ("velocity", "clean")),
    "loss_space": Kind("objective.loss_space", f"{_DIFFUSION}.objectives", ("velocity", "clean")),
    "weighting": Kind("objective.weighting", f"{_DIFFUSION}.objectives", ("none", "velocity")),
    "reconstruction": Kind("objective.reconstruction", f"{_DIFFUSION}.objectives", ("l1", "l2")),
    "path": Kind("objective.path", f"{_DIFFUSION}.paths", ("linear",)),
    "auxiliary": Kind(
        "auxiliary.extra",
        f"{_DIFFUSION}.auxiliary",
        ("alignment", "representation", "classification"),
        _TERMS,
    ),
    "regulariser": Kind(
        "latent.regularisers",
        f"{_DIFFUSION}.regularisers",
        ("variance_expansion", "vicreg_variance", "vicreg_covariance", "sigreg"),
        reserved=(*_TERMS, "alignment", "representation", "classification"),
    ),
    "normaliser": Kind(
        "latent.normaliser",
        f"{_MODEL}.normalisers",
        ("none", "layernorm", "layernorm_affine", "image_rmsnorm", "rmsnorm", "batchnorm", "tanh", "fixed_noise", "kl"),
    ),
    "block": Kind("network.block", f"{_MODEL}.blocks", ("adaln_zero",)),
    "time_distribution": Kind("time.distribution", f"{_DIFFUSION}.paths", ("uniform", "logit_normal")),
    "sampler": Kind("evaluate.sampler", f"{_DIFFUSION}.samplers", ("euler", "heun", "sde", "dopri5")),
    "data_source": Kind(
        "data.source",
        "dsd_lab.core.data",
        ("digits", "idx", "parquet", "folder", "datasets", "zip", "tar", "prepared"),
    ),
    "latent_metric": Kind(
        "(recorded by every probe)",
        "dsd_lab.core.observing.latent_metrics",
        tuple(metric.name for metric in LATENT),
        reserved=(
            *{metric.name.partition("/")[0]: None for metric in LATENT},
            "std",
            "log10_std",
            "probe_images",
            "pre",
        ),
    ),
    "sample_metric": Kind(
        "evaluate.metrics",
        "dsd_lab.evaluation.sample_metrics",
        tuple(metric.name for metric in SAMPLE),
        together=True,
    ),
}
