"""Names of metrics. They contain the settings, so that different measurements have different names and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsd_lab.specs.training import decay_of

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Generation, Trial


def sampling_name(evaluation: Generation) -> str:
    """How samples were drawn: `cfg1.5-heun25-holdout`, `cfg2in0.1to0.9-dopri5rtol1e-05atol1e-05-balanced`."""
    guidance = f"cfg{exact(evaluation.guidance)}"
    if evaluation.guidance != 1 and evaluation.guidance_interval is not None:
        ends = "inside" if evaluation.guidance_ends == "open" else "in"
        guidance += "{}{}to{}".format(ends, *map(exact, evaluation.guidance_interval))
    tolerance = f"rtol{exact(evaluation.rtol)}atol{exact(evaluation.atol)}"
    solver = evaluation.sampler + (tolerance if evaluation.adaptive else str(evaluation.steps))
    precision = "" if evaluation.precision == "fp32" else f"-{evaluation.precision}"
    return f"{guidance}-{solver}{precision}-{'holdout' if evaluation.images == 'holdout' else evaluation.labels}"


TURNS = "turns"
"""In-domain features of data without classes: of a network that learned quarter turns, and to paint the image small."""


def features_name(evaluation: Generation, conditional: bool = True) -> str:
    """What samples are compared on, by the task that made it: `indomain` (the data's classes), `turns`, `inception` or `dinov2`.

    Args:
        evaluation: which extractor it asks for.
        conditional: whether the data has classes to tell apart.
    """
    return TURNS if evaluation.extractor == "indomain" and not conditional else evaluation.extractor


def extractor_name(evaluation: Generation, conditional: bool = True) -> str:
    """What FID is measured on, and against: `indomain`, `inception`, or `inception-ref1a2b3c4d` with published statistics."""
    against = f"-ref{(evaluation.reference_sha256 or '')[:8]}" if evaluation.reference is not None else ""
    return features_name(evaluation, conditional) + against


def weights_name(evaluation: Generation, trial: Trial) -> str:
    """Whose weights: `ema0.99` or `trained`."""
    decay = decay_of(evaluation.weights, trial.training)
    return "trained" if decay is None else f"ema{exact(decay)}"


OVER_TRAINING = "over_training/"
"""Begins the name of what was measured of a kept checkpoint; its step in the store is the checkpoint's."""


def placed(name: str, evaluation: Generation) -> str:
    """The name of a metric of an evaluation: of a kept checkpoint it is another one than of the trained weights.

    What real images score depends on no checkpoint.
    """
    return name if evaluation.checkpoint == "last" or "_floor/" in name else f"{OVER_TRAINING}{name}"


def exact(number: float) -> str:
    """The shortest exact text of a number: 1, 1.25, 0.999."""
    return repr(float(number)).removesuffix(".0")
