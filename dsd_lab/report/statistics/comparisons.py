"""Variants compared with a reference variant, paired by seed: difference, interval, effect size, permutation test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from dsd_lab.report.groups import LOG_STD, Column, Group, points_of, reference_of, short_labels
from dsd_lab.report.statistics.intervals import (
    CONFIDENCE,
    TEST_FROM,
    Estimate,
    Paired,
    compare_paired,
    difference_range,
    holm,
    seeds_needed,
    smallest_p,
)
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell, shown
from dsd_lab.specs.metrics import BESIDE_SAMPLES
from dsd_lab.specs.report import ReportSettings


@dataclass(frozen=True)
class Comparison:
    """Comparison of a group with the reference at the same grid point, in one quantity."""

    group: Group
    reference: Group
    column: Column
    paired: Paired
    adjusted_p: float | None
    """p with Holm's correction over all comparisons of the quantity; None if it cannot reach 0.05 with so few seeds."""


def paired_differences(group: Group, reference: Group, column: Column, settings: ReportSettings) -> dict[int, float]:
    """Group minus reference by seed, over the seeds that both have."""
    # A seed names the same data order and initial weights in every variant.
    here, there = (side.values(column.name, settings) for side in (group, reference))
    return {seed: value - there[seed] for seed, value in here.items() if seed in there}


def compare(groups: list[Group], columns: list[Column], settings: ReportSettings) -> list[Comparison]:
    """Compare every group with the reference at its grid point, by `compare_pairs`."""
    reference = reference_of(groups, settings)
    pairs = []
    for members in points_of(groups).values():
        against = next((g for g in members if g.variant == reference), None)
        pairs += [(g, against) for g in members if against is not None and g is not against]
    return compare_pairs(pairs, columns, settings)


def compare_pairs(
    pairs: list[tuple[Group, Group]], columns: list[Column], settings: ReportSettings
) -> list[Comparison]:
    """Compare the groups of pairs (group, reference) in every quantity; the std is compared as log10."""
    found = []
    for column in (LOG_STD if c.name == "latent/std" else c for c in columns):
        family: list[tuple[Group, Group, Paired]] = []
        for group, against in pairs:
            differences = paired_differences(group, against, column, settings)
            paired = compare_paired(list(differences.values()), differences, difference_range(column.within))
            if paired is not None:
                family.append((group, against, paired))
        tested = [p.p for _, _, p in family if p.p is not None]
        adjusted = iter(holm(tested))
        enough = seeds_needed(len(tested)) if tested else 0
        for group, against, paired in family:
            own = next(adjusted) if paired.p is not None else None
            found.append(Comparison(group, against, column, paired, own if paired.difference.n >= enough else None))
    return found


def conclusions(comparisons: list[Comparison]) -> str:
    """Sentences on what can be concluded with this number of seeds."""
    if not comparisons:
        return ""
    seeds = max(c.paired.difference.n for c in comparisons)
    family = sum(c.column == comparisons[0].column for c in comparisons)
    if seeds == 1:
        return "One seed gives differences, but no intervals and no tests: nothing can be concluded about other seeds."
    compared = "the 1 comparison" if family == 1 else f"the {family} comparisons"
    limit = f"The smallest p that a two-sided sign-flip test over {seeds} seeds can give is {smallest_p(seeds):.2g}"
    alone = by_chance([c.paired.difference for c in comparisons])
    if seeds < TEST_FROM:
        return (
            f"{limit}, so no p-values are given: they could not be below 0.05, however large the differences. "
            f"Intervals assume that differences are normal over seeds; an interval that contains 0 does not show that there is no "
            f"difference. {alone} p-values are given from {TEST_FROM} seeds on."
        )
    if seeds < seeds_needed(family):
        return (
            f"{limit}. Holm's correction over {compared} of a quantity would raise it to "
            f"{min(1.0, smallest_p(seeds) * family):.2g}, so no single difference can be significant at 5 % after correction, "
            f"and p is given uncorrected. Corrected tests need {seeds_needed(family)} seeds. {alone}"
        )
    return f"{limit}. p is from that test; p in brackets has Holm's correction over {compared} of a quantity. {alone}"


def by_chance(estimates: list[Estimate]) -> str:
    """A sentence on how many uncorrected intervals exclude 0 by chance; empty without intervals."""
    intervals = sum(e.ci_low is not None for e in estimates)
    if not intervals:
        return ""
    return (
        "Intervals are not corrected for multiple comparisons: if nothing differed, on average "
        f"{intervals * (1 - CONFIDENCE):.1f} of the {intervals} intervals would exclude 0 by chance."
    )


def comparison_table(comparisons: list[Comparison], looks: dict[str, str]) -> Table | None:
    """One row per group, one column per quantity; None if nothing can be compared."""
    if not comparisons:
        return None
    columns = list(dict.fromkeys(c.column for c in comparisons))
    visible = [c for c in columns if c.is_latent or c.name.startswith(BESIDE_SAMPLES)]
    labels = short_labels(visible)
    by_row: dict[str, dict[str, Comparison]] = {}
    for comparison in comparisons:
        by_row.setdefault(comparison.group.name, {})[comparison.column.name] = comparison
    rows = []
    for name, found in by_row.items():
        seeds = str(max(c.paired.difference.n for c in found.values()))
        rows.append([Cell(name), Cell(seeds), *(_cell(found.get(c.name)) for c in visible)])
    dots = [looks[next(iter(found.values())).group.variant] for found in by_row.values()]
    frame = pd.DataFrame([comparison_row(c) for c in comparisons])
    reference = comparisons[0].reference.variant
    note = (
        "Differences are paired by seed, with 95 % intervals of their mean; a difference of 1 in log10 std is a factor of 10. "
        "d is the mean difference divided by the standard deviation of the differences, with Hedges' correction. "
    )
    title = f"Every variant minus {reference}, paired by seed"
    return Table(
        "comparisons", title, ["variant", "seeds", *labels.values()], rows, frame, note + conclusions(comparisons), dots
    )


def _cell(comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell("-")
    paired, more = comparison.paired, []
    if paired.effect is not None:
        more.append(f"d {shown(paired.effect, 1, signed=True)}")
    if paired.p is not None:
        holm_p = "" if comparison.adjusted_p is None else f" ({comparison.adjusted_p:.2g})"
        more.append(f"p {paired.p:.2g}{holm_p}")
    return estimate_cell(paired.difference, comparison.column.digits, signed=True, more="; ".join(more))


def comparison_row(comparison: Comparison) -> dict[str, Any]:
    """The numbers of a comparison, for CSV and JSON."""
    paired = comparison.paired
    return {
        "variant": comparison.group.variant,
        **comparison.group.point,
        "reference": comparison.reference.variant,
        "metric": comparison.column.name,
        **vars(paired.difference),
        "d_z": paired.effect,
        "p": paired.p,
        "p_holm": comparison.adjusted_p,
        "smallest_p": paired.smallest_p,
    }
