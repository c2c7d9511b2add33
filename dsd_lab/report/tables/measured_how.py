"""Describes how the values of a table were measured, from the metrics' names (`dsd_lab.evaluation.metric_names`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsd_lab.report.groups import Column, parts_of_name, settings_of

_WORDS = (
    (r"indomain", "features of an in-domain classifier"),
    (r"inception", "features of Inception-v3"),
    (r"dinov2", "features of DINOv2's ViT-L/14"),
    (r"bf16", "sampled in bfloat16"),
    (r"ref([0-9a-f]{8})", r"against the statistics \1"),
    (r"n(\d+)", r"\1 images"),
    (r"train(\d+)", r"fitted on \1 training images"),
    (r"cfg1", "no guidance"),
    (r"cfg([\d.e+-]+)in(?:side)?([\d.e+-]+)to([\d.e+-]+)", r"guidance \1 in t [\2, \3]"),
    (r"cfg([\d.e+-]+)", r"guidance \1"),
    (r"dopri5rtol([\d.e+-]+)atol([\d.e+-]+)", r"dopri5 (rtol \1, atol \2)"),
    (r"euler(\d+)", r"\1 Euler steps"),
    (r"heun(\d+)", r"\1 Heun steps"),
    (r"sde(\d+)", r"\1 Euler-Maruyama steps of the SDE"),
    (r"holdout", "labels of the held-out images"),
    (r"(balanced|random|training)", r"\1 labels"),
    (r"ema([\d.e+-]+)", r"EMA weights with decay \1"),
    (r"trained", "trained weights, not averaged"),
    (r"perimage", "mean over images"),
    (r"(?:skimage|uniform|wang)(\d+)", r"windows of \1 pixels"),
)


def measured_how(columns: Sequence[Column], labels: dict[str, str]) -> str:
    """One sentence for each combination of settings, with its columns; empty without evaluations.

    Args:
        columns: the columns of a table.
        labels: headers by column name.
    """
    ways: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        if settings := settings_of(column):
            ways.setdefault(settings, []).append(labels[column.name])
    sentences = [f"{', '.join(names)}: {', '.join(map(_words_of, settings))}." for settings, names in ways.items()]
    return f"How it was measured. {' '.join(sentences)}" if sentences else ""


def in_words(how: str) -> str:
    """The settings in a metric's name, in words."""
    return ", ".join(map(_words_of, parts_of_name(how)))


def _words_of(token: str) -> str:
    for pattern, words in _WORDS:
        if found := re.fullmatch(pattern, token):
            return found.expand(words)
    return token
