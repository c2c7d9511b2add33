"""`dsd-lab report`: bring the store up to date, then write tables, figures and pages from it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from dsd_lab.errors import OK, BadInput
from dsd_lab.home import ENDED, Home
from dsd_lab.provenance import training_code
from dsd_lab.report.figures import draw_all
from dsd_lab.report.pages import group_json, page_content, write_html, write_markdown
from dsd_lab.report.results import Result, result_of
from dsd_lab.report.tables import answer, cell, columns_of, gap_table, groups_of, main_table, trial_table
from dsd_lab.specs.sweep import ReportSettings
from dsd_lab.store import Store
from dsd_lab.verbs.common import find_manifest, home_of, print_json


def run(arguments: argparse.Namespace) -> int:
    """Report a sweep."""
    home = home_of(arguments)
    manifest = find_manifest(home, arguments.sweep, arguments.profile)
    settings = ReportSettings.model_validate(manifest["spec"]["report"])
    folder = Path(arguments.out) if arguments.out else home.report_folder(manifest["key"])
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder}: is a file; name a folder")
    store = Store(home, arguments.tracking_uri)
    store.sync(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        results = _results(home, store, manifest, Path(scratch))
        content = write_report(results, settings, manifest, folder)
    store.attach_report(manifest, folder)
    if arguments.json:
        print_json(content["json"])
        return OK
    for line in [*content["notices"], content["answer"]]:
        print(line)
    print(f"report: {(folder / 'report.html').resolve()}")
    at = "" if arguments.home is None else f" --home {arguments.home}"
    print(f"MLflow: dsd-lab ui{at}")
    return OK


def _results(home: Home, store: Store, manifest: dict[str, Any], scratch: Path) -> list[Result]:
    code = training_code()
    results = []
    for stored in store.read(manifest, scratch):
        state = stored.tags.get("dsd.state", "pending")
        if state in ENDED and stored.tags.get("dsd.code") != code:
            state = "stale" if state == "done" else state
        results.append(result_of(stored.entry, state, stored.tags, stored.metrics, stored.folder))
    return results


def write_report(
    results: list[Result], settings: ReportSettings, manifest: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Write pages, tables and figures below a folder; returns what the pages show, and `json`."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    groups, columns = groups_of(results, settings), columns_of(results)
    tables = {
        "verdicts": main_table(groups, columns),
        "trials": trial_table(groups, columns, settings),
        "rank_gap": gap_table(groups, settings),
    }
    for name, table in tables.items():
        table.map(cell).to_csv(folder / "tables" / f"{name}.csv", index=False)
    print(f"dsd-lab: drawing the figures of {len(results)} trials", file=sys.stderr)
    drawn = draw_all(groups, settings, folder / "figures")
    content = page_content(groups, columns, settings, manifest, drawn, folder)
    write_html(content, folder / "report.html")
    write_markdown(content, folder / "report.md")
    content["json"] = {"sweep": manifest["key"], "answer": answer(groups), "variants": [group_json(g) for g in groups]}
    return content
