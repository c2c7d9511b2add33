"""A report: tables, figures and pages of one sweep in one folder, and what `report --json` says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dsd_lab.report.figures.pictures import note_damaged
from dsd_lab.report.figures.registry import draw_all
from dsd_lab.report.figures.scaling import scaling_table
from dsd_lab.report.figures.style import looks_of
from dsd_lab.report.groups import Group, columns_of, effective_control, groups_of, short_labels
from dsd_lab.report.own_metrics import own_parts_table
from dsd_lab.report.page.frames import frames_of
from dsd_lab.report.page.narrative import answer, method_note, notices, provenance_lines
from dsd_lab.report.page.page import Page, write_html, write_markdown
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.agreement import theory_table
from dsd_lab.report.statistics.comparisons import Comparison, compare, comparison_row, comparison_table, conclusions
from dsd_lab.report.statistics.factorial import effect_table, effects_sentence
from dsd_lab.report.statistics.tuning import tuned_results, tuning_table
from dsd_lab.report.tables.main import cost_table, evaluation_table, gap_table, trial_table, verdict_table
from dsd_lab.report.tables.published import collapse_table, published_table
from dsd_lab.report.tables.rendering import Table, write_tables
from dsd_lab.specs.report import ReportSettings


def write_report(
    results: list[Result], settings: ReportSettings, manifest: dict[str, Any], folder: Path
) -> tuple[Page, dict[str, Any]]:
    """Write pages, tables and figures below an empty folder; returns what the pages show and what `--json` prints.

    The same results give the same bytes but for the date at the end of the pages.
    """
    page, content = write_part(results, settings, manifest, folder)
    write_html([page], folder)
    write_markdown([page], folder)
    return page, content


def write_part(
    results: list[Result], settings: ReportSettings, manifest: dict[str, Any], folder: Path
) -> tuple[Page, dict[str, Any]]:
    """Write the tables and figures of one sweep below a folder; returns its page, which is not written, and its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = results
    results, tuned = tuned_results(results, settings)
    groups, columns = groups_of(results, settings), columns_of(results)
    all_groups = groups_of(everything, settings) if tuned else groups
    dots = {name: look.colour for name, look in looks_of(groups, effective_control(groups, settings)).items()}
    comparisons, effects = compare(groups, columns, settings), effect_table(groups, settings)
    made = (
        verdict_table(groups, columns, dots),
        effects,
        comparison_table(comparisons, dots),
        evaluation_table(groups, columns, dots),
        gap_table(groups, settings),
        theory_table(groups, settings, dots),
        scaling_table(groups, dots),
        tuning_table(tuned, settings.tuned) if settings.tuned else None,
        cost_table(all_groups, dots),
        published_table(groups, dots),
        collapse_table(groups, settings, dots),
        own_parts_table(everything),
        trial_table(all_groups, columns, settings),
    )
    tables = [table for table in made if table is not None]
    write_tables(tables, folder / "tables")
    labels = short_labels(columns)
    note_damaged(groups)
    figures, frames = draw_all(groups, settings, folder / "figures"), frames_of(groups)
    page = Page(
        key=manifest["key"],
        title=manifest["name"] + (f" ({manifest['profile']})" if manifest["profile"] else ""),
        why=manifest["why"],
        notices=notices(all_groups, settings),
        answer=[s for s in (*answer(groups), effects_sentence(effects)) if s],
        method=method_note(groups, settings),
        tables=tables,
        figures=figures,
        frames=frames,
        columns=[(labels[c.name], c.name, c.note) for c in columns],
        variants=[(name, fields.get("why", "")) for name, fields in manifest["spec"]["variants"].items()],
        provenance=provenance_lines(everything, manifest),
    )
    return page, _json(page, groups, comparisons, effects, {t.name: t for t in tables}, manifest)


def _json(
    page: Page,
    groups: list[Group],
    comparisons: list[Comparison],
    effects: Table | None,
    tables: dict[str, Table],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    return {
        "sweep": manifest["key"],
        "answer": " ".join(page.answer),
        "notices": page.notices,
        "variants": [_group_json(g) for g in groups],
        "comparisons": {
            "reference": comparisons[0].reference.variant if comparisons else None,
            "conclusions": conclusions(comparisons),
            "rows": [comparison_row(c) for c in comparisons],
        },
        "effects": _records(effects),
        "theory": _records(tables.get("theory")),
        "cost": _records(tables.get("cost")),
    }


def _group_json(group: Group) -> dict[str, Any]:
    """A row of `variants`."""
    return {
        "variant": group.variant,
        "point": group.point,
        "healthy": {"seeds": group.healthy, "of": group.with_verdict, "interval": group.healthy_interval},
        "seeds": [
            {
                "seed": r.seed,
                "verdict": group.verdicts[r.seed],
                "state": r.state,
                "trial": r.id,
                "collapsed_at": group.judged[r.seed].collapsed_at,
            }
            for r in group.results
        ],
        "metrics": {name: vars(e) for name, e in group.estimates.items()},
    }


def _records(table: Table | None) -> list[dict[str, Any]]:
    """A table's numbers; what a row lacks is null."""
    if table is None:
        return []
    rows: list[dict[str, Any]] = table.frame.astype(object).to_dict("records")
    return [
        {k: None if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()}
        for row in rows
    ]
