"""Reasons not to take a measured distance at its value, in words."""

from __future__ import annotations

from collections import Counter

from dsd_lab.home.names import NOT_FINITE
from dsd_lab.report.results import Result
from dsd_lab.report.tables.measured_how import in_words

_NAMED = 8
"""Metrics that a notice names."""


def flags_of(results: list[Result]) -> list[str]:
    """One line for each reason not to take a Frechet distance at its value, and for what is left out since it is not finite."""
    told: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for name, value in result.metrics.items():
            kind, _, rest = name.partition("/")
            why, _, how = rest.partition("/")
            if kind == "fid_flag":
                told.setdefault((why, how), []).append(value)
    lines = []
    for (why, how), values in sorted(told.items()):
        said = _FLAGS.get(why, why).format(f"{min(values):,.0f}")
        lines.append(f"FID of {len(values)} trial{'s' * (len(values) > 1)} ({in_words(how)}) {said}.")
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
                f"Weights ({what}) of {trials} are not finite: nothing of them is measured, and their images are a chessboard."
            )
        elif not name.startswith("fid/"):  # its flag has a line already
            named.append(f"{name} ({trials})")
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        lines.append(f"Not finite at some step, and left out there: {', '.join(named[:_NAMED])}{more}.")
    return lines


_FLAGS = {
    "few_images": "is too high: {} images are fewer than the features have dimensions. Evaluate more images, or read KID, which does not depend on their number",
    "rank_deficient": "is unreliable: the samples vary in only {} dimensions of the features, as they do where many look alike",
    "constant": "is unreliable: all samples look the same to the classifier",
    "not_finite": "could not be computed (not finite) and is left out",
    "floor_with_train": "stands beside a score of real images that is too low: there were too few held-out images, and {} training images were added to them",
    "few_real": "has no score of real images beside it: there are only {} real images, fewer than samples",
}
