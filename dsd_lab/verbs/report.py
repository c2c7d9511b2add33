"""`dsd-lab report`: bring the store up to date, then write tables, figures and pages from it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from dsd_lab.errors import OK, BadInput
from dsd_lab.provenance import training_code
from dsd_lab.report.report import write_report
from dsd_lab.report.results import Result, result_of
from dsd_lab.specs.sweep import ReportSettings
from dsd_lab.store import Store
from dsd_lab.verbs.common import find_manifest, home_of, print_json, program


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
        results = results_of(store, manifest, Path(scratch))
        print(f"dsd-lab: drawing the figures of {len(results)} trials", file=sys.stderr)
        page, content = write_report(results, settings, manifest, folder)
    store.attach_report(manifest, folder)
    if arguments.json:
        print_json(content)
        return OK
    for line in [*page.notices, *page.answer]:
        print(line)
    print(f"report: {(folder / 'report.html').resolve()}")
    command, at = program(arguments)
    print(f"MLflow: {command} ui{at}")
    return OK


def results_of(store: Store, manifest: dict[str, Any], scratch: Path) -> list[Result]:
    """The trials of a sweep as the store holds them; those that other training code trained are `stale`."""
    code = training_code()
    results = []
    for stored in store.read(manifest, scratch):
        state = stored.tags.get("dsd.state", "pending")
        if state == "done" and stored.tags.get("dsd.code") != code:
            state = "stale"
        results.append(result_of(stored.entry, state, stored.tags, stored.metrics, stored.folder))
    return results
