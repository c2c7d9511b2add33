"""Warnings about unreliable FIDs and about values that are not finite."""

from __future__ import annotations

from collections import Counter

from dsd_lab.home.names import NOT_FINITE
from dsd_lab.report.results import Result
from dsd_lab.report.tables.measured_how import in_words
from dsd_lab.specs.metrics import FID

_NAMED = 8
"""Maximum number of metrics that a notice names."""


def flags_of(results: list[Result]) -> list[str]:
    """One line for each kind of unreliable FID, and for values that are left out because they are not finite."""
    flagged: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for name, value in result.metrics.items():
            kind, _, rest = name.partition("/")
            why, _, how = rest.partition("/")
            if kind == "fid_flag":
                flagged.setdefault((why, how), []).append(value)
    lines = []
    for (why, how), values in sorted(flagged.items()):
        reason = _FLAGS.get(why, why).format(f"{min(values):,.0f}")
        lines.append(f"FID of {len(values)} trial{'s' * (len(values) > 1)} ({in_words(how)}) {reason}.")
    return lines + _not_finite(results)


def _not_finite(results: list[Result]) -> list[str]:
    counts = Counter(
        name.removeprefix(NOT_FINITE) for r in results for name in r.metrics if name.startswith(NOT_FINITE)
    )
    lines, named = [], []
    for name, count in sorted(counts.items()):
        trials = f"{count} trial{'s' * (count > 1)}"
        if name.startswith("weights/"):
            what = name.removeprefix("weights/")
            lines.append(
                f"Weights ({what}) of {trials} are not finite: no metrics are computed, and their images are a checkerboard."
            )
        elif not name.startswith(FID):  # FID has a flag of its own
            named.append(f"{name} ({trials})")
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        lines.append(f"Not finite at some step, where they are left out: {', '.join(named[:_NAMED])}{more}.")
    return lines


_FLAGS = {
    "few_images": "is too high: {} images are fewer than the feature dimensions. Evaluate more images, or read KID, which has no bias from the number of images",
    "rank_deficient": "is unreliable: the samples span only {} feature dimensions; many of them look alike",
    "constant": "is unreliable: all samples have the same features",
    "not_finite": "is not finite and is left out",
    "floor_with_train": "is compared with a score of real images that is too low: held-out images were too few, and {} training images were added",
    "few_real": "has no score of real images to compare with: there are only {} real images, fewer than samples",
}
