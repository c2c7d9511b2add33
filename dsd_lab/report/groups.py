"""Rows and columns of a report. A row (group) is a variant at a grid point over its seeds; a column is a quantity."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dsd_lab.report.own_metrics import own_latent, own_samples
from dsd_lab.report.results import Result, point_name
from dsd_lab.report.statistics.intervals import Estimate, clopper_pearson, estimate
from dsd_lab.report.statistics.verdicts import VERDICTS, Judged, judge, row_key
from dsd_lab.specs.metrics import ANY, CLASSIFIER, LATENT, SAME, SAMPLE, STD, Metric, Range
from dsd_lab.specs.report import ReportSettings

_SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Column:
    """A quantity of the tables."""

    name: str
    label: str
    digits: int
    note: str
    within: Range = ANY
    """Range of the quantity; intervals are cut at its bounds."""

    @classmethod
    def of(cls, metric: Metric) -> Column:
        """The column of a metric that is recorded under one name."""
        return cls(metric.recorded, metric.heading, metric.digits, metric.note, metric.within)

    @property
    def is_latent(self) -> bool:
        return self.name.startswith("latent/")


LATENT_COLUMNS = tuple(Column.of(metric) for metric in (STD, *LATENT) if metric.table)
MAIN_LATENTS = tuple(Column.of(metric) for metric in (STD, *LATENT) if metric.main)
"""Scale, rank and capacity: one column of each."""
LOG_STD = Column(
    "latent/log10_std", "log10 latent std", 2, f"differences are ratios; smaller values are set to {_SMALLEST_STD:g}"
)
CAPACITY, _TOKEN_RANK = (
    next(c for c in LATENT_COLUMNS if c.name == f"latent/{name}")
    for name in ("capacity_bits/token", "effective_rank/token")
)
EFFECT_COLUMNS = (CAPACITY, LOG_STD, _TOKEN_RANK)
"""Quantities for which factorial effects are computed."""

_INCEPTION = "features of Inception-v3"
_DINOV2 = "features of DINOv2"
_TURNED = "features of a network trained on this data, which has no classes, to predict rotations and a downscaled image; not Inception"
_EARLIER = {
    "psnr": (r"n\d+-", "held-out reconstructions, one error over all pixels: an earlier definition"),
    "ssim": (r"(uniform\d+-)?n\d+-", "held-out reconstructions, padded at their borders: an earlier definition"),
}
"""Metrics with an earlier definition: pattern of their names, and note. They have columns of their own."""


def columns_of(results: list[Result], also: Collection[str] = ()) -> list[Column]:
    """The quantities of these results: latent metrics first, then one column per distinct evaluation.

    `also`: names of further metrics.
    """
    names = sorted({name for r in results for name in r.metrics if not name.startswith("latent/")} | {*also})
    found = [*LATENT_COLUMNS, *map(Column.of, own_latent(results))]
    for metric in (*SAMPLE, *own_samples(results)):
        prefix, label = metric.recorded, metric.heading
        for name in names:
            if name.startswith(f"{prefix}/") and "_floor/" not in name:
                how, what, note = name.removeprefix(f"{prefix}/"), label, metric.note
                if how.startswith("indomain") and prefix == "fid":
                    what = f"in-domain {label}"
                if how.startswith("inception"):
                    what = f"Inception {label}" if label.endswith(("FID", "KID")) else label
                    note = note.replace(CLASSIFIER, _INCEPTION).replace(SAME, _INCEPTION)
                if how.startswith("dinov2"):
                    distance = f"DINOv2 {label}" if label.endswith(("FID", "KID")) else label
                    what = "FD-DINOv2" if prefix == "fid" else distance
                    note = note.replace(CLASSIFIER, _DINOV2).replace(SAME, _DINOV2)
                if how.startswith("turns-"):
                    note = note.replace(CLASSIFIER, _TURNED).replace(SAME, _TURNED)
                if prefix in _EARLIER and re.match(_EARLIER[prefix][0], how):
                    note = _EARLIER[prefix][1]
                found.append(Column(name, f"{what} ({how})", metric.digits, note, metric.within))
    return found


def range_of(metric: str) -> Range:
    """Range of a quantity by its recorded name; unbounded if it is unknown."""
    bounded = {m.recorded: m.within for m in (STD, *LATENT)}
    evaluated = (m.within for m in SAMPLE if metric.startswith(f"{m.recorded}/"))
    return bounded[metric] if metric in bounded else next(evaluated, ANY)


def settings_of(column: Column) -> tuple[str, ...]:
    """The settings in a column's name: `indomain`, `n395`, `cfg1.5`, ...; empty for latent metrics."""
    bracket = re.search(r" \((.*)\)$", column.label)
    return () if bracket is None or column.is_latent else parts_of_name(bracket[1])


def parts_of_name(how: str) -> tuple[str, ...]:
    """The settings in the last section of a metric's name; the minus of an exponent is not a separator."""
    return tuple(re.split(r"-(?=[a-z])", how))


def short_labels(columns: list[Column]) -> dict[str, str]:
    """Short labels: settings in brackets are given only where columns of one quantity differ."""
    bare = {c.name: re.sub(r" \(.*\)$", "", c.label) for c in columns}
    labels = {}
    for column in columns:
        others = [settings_of(c) for c in columns if bare[c.name] == bare[column.name]]
        own = [part for part in settings_of(column) if not all(part in other for other in others)]
        labels[column.name] = f"{bare[column.name]} ({', '.join(own)})" if own else bare[column.name]
    counts = Counter(labels.values())
    return {c.name: labels[c.name] if counts[labels[c.name]] == 1 else c.label for c in columns}


def floors_of(results: list[Result], columns: list[Column]) -> dict[str, float]:
    """Column -> value for real images in place of samples, if it was measured with the same number of images."""
    found = {}
    for result in results:
        for evaluation, metrics in result.evaluations:
            count = f"n{result.images_of(evaluation)}"
            floors = [name.rpartition("/") for name in metrics if "_floor/" in name]
            at_count = {kind: how for kind, _, how in floors if how.rpartition("-")[2] == count}
            for column in (c for c in columns if c.name in metrics):
                floor = f"{column.name.rpartition('/')[0]}_floor"
                if floor in at_count:
                    found[column.name] = metrics[f"{floor}/{at_count[floor]}"]
    return found


def value_of(result: Result, column: str, settings: ReportSettings) -> float | None:
    """A trial's value in a column: the median of the last probes for latent metrics, the stored value for evaluations."""
    if not column.startswith("latent/"):
        value = result.metrics.get(column)
    elif column in ("latent/std", LOG_STD.name):
        variance = result.last_probes("latent/variance", settings.probes)
        value = None if variance is None else variance**0.5
        if value is not None and column == LOG_STD.name:
            value = math.log10(max(value, _SMALLEST_STD))
    else:
        value = result.last_probes(column, settings.probes)
    return value if value is not None and math.isfinite(value) else None


def values_of(results: list[Result], column: str, settings: ReportSettings) -> dict[int, float]:
    """Values of a column by seed, for finished trials that have one."""
    return {r.seed: v for r in results if r.finished and (v := value_of(r, column, settings)) is not None}


@dataclass(frozen=True)
class Group:
    """A row of the main table: a variant at a grid point, over its seeds."""

    name: str
    variant: str
    point: dict[str, Any]
    results: list[Result]
    judged: dict[int, Judged]
    """By seed."""
    estimates: dict[str, Estimate]
    """By column."""

    @cached_property
    def point_name(self) -> str:
        return point_name(self.point)

    @cached_property
    def finished(self) -> list[Result]:
        """The trials whose values are in the means."""
        return [r for r in self.results if r.finished]

    def probed(self, name: str, settings: ReportSettings) -> dict[int, float]:
        """Medians of the last probes of a metric by seed, for finished trials that have one."""
        found = {r.seed: r.last_probes(name, settings.probes) for r in self.finished}
        return {seed: value for seed, value in found.items() if value is not None}

    def values(self, column: str, settings: ReportSettings) -> dict[int, float]:
        """Values of a column by seed, for finished trials that have one."""
        return values_of(self.results, column, settings)

    @cached_property
    def described(self) -> list[Result]:
        """Finished trials with a readable description."""
        return [r for r in self.finished if r.description]

    @property
    def verdicts(self) -> dict[int, str | None]:
        """Verdict by seed, or None."""
        return {seed: j.verdict for seed, j in self.judged.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of seeds per verdict, in a fixed order."""
        counts = Counter(j.verdict for j in self.judged.values())
        return {v: counts[v] for v in VERDICTS if counts[v]}

    @property
    def with_verdict(self) -> int:
        return sum(self.counts.values())

    @property
    def healthy(self) -> int:
        return self.counts.get("healthy", 0)

    @cached_property
    def healthy_interval(self) -> tuple[float, float] | None:
        """95 % Clopper-Pearson interval of the fraction of healthy seeds."""
        return clopper_pearson(self.healthy, self.with_verdict) if self.with_verdict else None

    @property
    def states(self) -> dict[str, int]:
        """Number of trials without a verdict, by state."""
        return dict(Counter(r.state for r in self.results if self.judged[r.seed].verdict is None))

    @property
    def collapse_steps(self) -> list[int]:
        """Step of collapse of every collapsed seed, ascending."""
        return sorted(j.collapsed_at for j in self.judged.values() if j.collapsed_at is not None)


def groups_of(results: list[Result], settings: ReportSettings) -> list[Group]:
    """The rows of the main table, in the spec's order."""
    judged, columns = judge(results, settings), columns_of(results)
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.group, []).append(result)
    groups = []
    for name, members in by_name.items():
        estimates = {}
        for column in columns:
            values = values_of(members, column.name, settings)
            if (found := estimate(list(values.values()), values, column.within)) is not None:
                estimates[column.name] = found
        by_seed = {r.seed: judged[row_key(r)] for r in members}
        groups.append(Group(name, members[0].variant, members[0].point, members, by_seed, estimates))
    return groups


def points_of(groups: list[Group]) -> dict[str, list[Group]]:
    """Name of grid point -> its groups, both in the spec's order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.point_name, []).append(group)
    return found


def effective_control(groups: list[Group], settings: ReportSettings) -> str | None:
    """The control's name if the sweep has it, else None."""
    return next((g.variant for g in groups if g.variant == settings.control), None)


def reference_of(groups: list[Group], settings: ReportSettings) -> str | None:
    """The variant that others are compared with: the spec's reference, else `dsd`, the control, or the first."""
    variants = dict.fromkeys(g.variant for g in groups)
    return next((v for v in (settings.reference, "dsd", settings.control, *variants) if v in variants), None)
