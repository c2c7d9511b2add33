"""The tables of a report, as data frames that the pages, CSV files and JSON share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dsd_lab.report.results import Result
from dsd_lab.report.statistics import Estimate, clopper_pearson, estimate
from dsd_lab.report.verdicts import VERDICTS, row_key, verdicts
from dsd_lab.specs.sweep import ReportSettings


@dataclass(frozen=True)
class Column:
    """A quantity of the main table."""

    name: str
    label: str
    digits: int
    note: str


LATENT_COLUMNS = (
    Column("latent/std", "latent std", 3, "square root of latent/variance"),
    Column(
        "latent/effective_rank/token", "effective rank, tokens", 2, "Roy and Vetterli 2007, at most the latent channels"
    ),
    Column("latent/effective_rank/image", "effective rank, images", 1, "the same of whole latents"),
    Column("latent/capacity_bits/token", "capacity, bits a token", 2, "what survives unit-variance noise"),
)

_GENERATION = {
    "fid": ("FID", 2, "lower is better; features of an in-domain classifier, not Inception"),
    "kid": ("KID", 3, "lower is better; same features"),
    "label_accuracy": ("label accuracy", 3, "how often that classifier agrees with the label asked for"),
    "memorisation/nearest_train": ("nearest training image", 1, "median RMS distance in grey levels"),
    "psnr": ("PSNR, dB", 1, "held-out reconstructions"),
}


def columns_of(results: list[Result]) -> list[Column]:
    """The quantities that these results have: latents first, then every distinct evaluation, never two in one column."""
    names = sorted({name for r in results for name in r.metrics})
    found = list(LATENT_COLUMNS)
    for prefix, (label, digits, note) in _GENERATION.items():
        for name in names:
            if name.startswith(f"{prefix}/") and "_floor/" not in name:
                found.append(Column(name, f"{label} ({name.removeprefix(prefix + '/')})", digits, note))
    return found


def short_labels(columns: list[Column]) -> dict[str, str]:
    """Labels without the settings in brackets where one evaluation was made, so that a table fits a page."""
    shortened = {c.name: re.sub(r" \(.*\)$", "", c.label) for c in columns}
    counts = Counter(shortened.values())
    return {c.name: shortened[c.name] if counts[shortened[c.name]] == 1 else c.label for c in columns}


def floors_of(results: list[Result]) -> dict[str, float]:
    """Real-against-real values by column prefix: what held-out images would score."""
    found: dict[str, float] = {}
    for result in results:
        for name, value in result.metrics.items():
            if "_floor/" in name:
                found[name] = value
    return found


def value_of(result: Result, column: str, settings: ReportSettings) -> float | None:
    """A trial's value of a column: latent metrics as the median of the last probes, evaluations as stored."""
    if column == "latent/std":
        variance = result.last_probes("latent/variance", settings.probes)
        return None if variance is None else variance**0.5
    if column.startswith("latent/"):
        return result.last_probes(column, settings.probes)
    return result.metrics.get(column)


@dataclass(frozen=True)
class Group:
    """A row of the main table: a variant at a grid point, over its seeds."""

    name: str
    variant: str
    point: dict[str, Any]
    results: list[Result]
    verdicts: dict[int, str | None]
    """By seed."""
    estimates: dict[str, Estimate]

    @property
    def judged(self) -> list[str]:
        return [v for v in self.verdicts.values() if v is not None]

    @property
    def counts(self) -> dict[str, int]:
        """Verdicts that occur, in a fixed order."""
        counts = Counter(self.judged)
        return {v: counts[v] for v in VERDICTS if counts[v]}

    @property
    def healthy_interval(self) -> tuple[float, float] | None:
        """95 % Clopper-Pearson interval of the share of healthy seeds."""
        judged = self.judged
        return clopper_pearson(self.counts.get("healthy", 0), len(judged)) if judged else None

    @property
    def states(self) -> dict[str, int]:
        """States of the trials that have no verdict."""
        return dict(Counter(r.state for r in self.results if self.verdicts[r.seed] is None))


def groups_of(results: list[Result], settings: ReportSettings) -> list[Group]:
    """The rows of the main table, in the spec's order."""
    found = verdicts(results, settings)
    columns = columns_of(results)
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.group, []).append(result)
    groups = []
    for name, members in by_name.items():
        ended = [r for r in members if r.state in ("done", "stale")]
        estimates = {}
        for column in columns:
            values = [v for r in ended if (v := value_of(r, column.name, settings)) is not None]
            if (found_estimate := estimate(values)) is not None:
                estimates[column.name] = found_estimate
        by_seed = {r.seed: found[row_key(r)] for r in members}
        groups.append(Group(name, members[0].variant, members[0].point, members, by_seed, estimates))
    return groups


def main_table(groups: list[Group], columns: list[Column]) -> pd.DataFrame:
    """One row a group: seeds, verdict counts with their interval, and mean, interval and n of every column."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {"variant": group.variant, **group.point, "seeds": len(group.results)}
        row |= {verdict: group.counts.get(verdict, 0) for verdict in VERDICTS}
        low, high = group.healthy_interval or (None, None)
        row |= {"healthy_ci_low": low, "healthy_ci_high": high}
        for column in columns:
            found = group.estimates.get(column.name)
            for part in ("mean", "sd", "ci_low", "ci_high", "n"):
                row[f"{column.name} {part}"] = getattr(found, part) if found else (0 if part == "n" else None)
        rows.append(row)
    return pd.DataFrame(rows)


def trial_table(groups: list[Group], columns: list[Column], settings: ReportSettings) -> pd.DataFrame:
    """One row a trial: what it is, its state and verdict, its values and its cost."""
    rows = []
    for group in groups:
        for result in group.results:
            row: dict[str, Any] = {
                "id": result.id,
                "variant": result.variant,
                **result.point,
                "size": result.size,
                "seed": result.seed,
            }
            row |= {
                "state": result.state,
                "verdict": group.verdicts[result.seed],
                "step": result.step,
                "seconds": round(result.seconds, 1),
            }
            row |= {c.name: value_of(result, c.name, settings) for c in columns}
            rows.append(row)
    return pd.DataFrame(rows)


def gap_table(groups: list[Group], settings: ReportSettings) -> pd.DataFrame:
    """Rank gap (target minus prediction) by bin of t: mean over seeds of the median of the last probes."""
    rows = []
    for group in groups:
        names = sorted(
            {n for r in group.results for n in r.metrics if n.startswith("rank_gap/")},
            key=lambda n: int(n.rsplit("t", 1)[1]),
        )
        for index, name in enumerate(names):
            values = [v for r in group.results if (v := r.last_probes(name, settings.probes)) is not None]
            found = estimate(values)
            if found is not None:
                rows.append(
                    {
                        "variant": group.variant,
                        **group.point,
                        "t_low": index / len(names),
                        "t_high": (index + 1) / len(names),
                        **vars(found),
                    }
                )
    return pd.DataFrame(rows)


def answer(groups: list[Group]) -> str:
    """The sweep's answer in words, made from the verdict counts alone."""
    always, never, mixed, missing = [], [], [], []
    for group in groups:
        healthy, judged = group.counts.get("healthy", 0), len(group.judged)
        told = ", ".join(f"{v} {n}" for v, n in group.counts.items() if v != "healthy")
        if not judged:
            missing.append(group.name)
        elif healthy == judged:
            always.append(group.name)
        elif healthy == 0:
            never.append(f"{group.name} ({told} of {judged})")
        else:
            mixed.append(f"{group.name} (healthy {healthy} of {judged}; {told})")
    parts = []
    if always:
        parts.append(f"Latents are healthy in every seed: {', '.join(always)}.")
    if never:
        parts.append(f"They collapse in every seed: {', '.join(never)}.")
    if mixed:
        parts.append(f"Seeds disagree: {', '.join(mixed)}.")
    if missing:
        parts.append(f"No verdict yet: {', '.join(missing)}.")
    return " ".join(parts)


def show(value: Estimate | None, digits: int) -> str:
    """`mean [low, high]`; the mean alone where one seed gives no interval."""
    if value is None:
        return "-"
    if value.ci_low is None or value.ci_high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.ci_low:.{digits}f}, {value.ci_high:.{digits}f}]"


def cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
