"""Writes a report: tables, figures and pages of one sweep in one folder, and the output of `report --json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dsd_lab.home.sweep_records import Manifest
from dsd_lab.report.content import Content
from dsd_lab.report.figures.pictures import note_damaged
from dsd_lab.report.figures.registry import draw_all
from dsd_lab.report.groups import Group, short_labels
from dsd_lab.report.page.frames import frames_of
from dsd_lab.report.page.narrative import provenance_lines
from dsd_lab.report.page.page import Page, write_html, write_markdown
from dsd_lab.report.results import Result
from dsd_lab.report.statistics.comparisons import comparison_row, conclusions
from dsd_lab.report.tables.rendering import Table, write_tables
from dsd_lab.specs.report import ReportSettings


def write_report(
    results: list[Result], settings: ReportSettings, manifest: Manifest, folder: Path
) -> tuple[Page, dict[str, Any]]:
    """Write pages, tables and figures into an empty folder; returns the page and the content for `--json`.

    The same results give the same bytes, except for the date at the end of the pages.
    """
    page, content = write_part(results, settings, manifest, folder)
    write_html([page], folder)
    write_markdown([page], folder)
    return page, content


def write_part(
    results: list[Result], settings: ReportSettings, manifest: Manifest, folder: Path
) -> tuple[Page, dict[str, Any]]:
    """Write the tables and figures of one sweep into a folder; returns its page (not written) and its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    content = Content(manifest, results, settings)
    tables, labels = list(content.tables.values()), short_labels(content.columns)
    write_tables(tables, folder / "tables")
    note_damaged(content.groups)
    figures, frames = draw_all(content.groups, settings, folder / "figures"), frames_of(content.groups)
    page = Page(
        key=manifest.key,
        title=manifest.name + (f" ({manifest.profile})" if manifest.profile else ""),
        why=manifest.why,
        notices=content.notices,
        answer=content.sentences,
        method=content.method,
        tables=tables,
        figures=figures,
        frames=frames,
        columns=[(labels[c.name], c.name, c.note) for c in content.columns],
        variants=[(name, fields.get("why", "")) for name, fields in manifest.spec["variants"].items()],
        provenance=provenance_lines(results, manifest),
    )
    comparisons = content.comparisons
    return page, {
        "sweep": page.key,
        "answer": " ".join(page.answer),
        "notices": page.notices,
        "variants": [_group_json(g) for g in content.groups],
        "comparisons": {
            "reference": comparisons[0].reference.variant if comparisons else None,
            "conclusions": conclusions(comparisons),
            "rows": [comparison_row(c) for c in comparisons],
        },
        **{name: _records(content.tables.get(name)) for name in ("effects", "theory", "cost")},
    }


def _group_json(group: Group) -> dict[str, Any]:
    """An entry of `variants` in the JSON."""
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
    """A table's numbers as records; missing ones are null."""
    if table is None:
        return []
    rows = table.frame.astype(object).to_dict("records")
    return [
        {str(k): None if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()}
        for row in rows
    ]
