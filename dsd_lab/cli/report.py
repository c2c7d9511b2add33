"""`dsd-lab report`: bring the store up to date, then write tables, figures and pages from it."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from dsd_lab.cli.options import home_of, print_json, program
from dsd_lab.errors import OK, BadInput
from dsd_lab.home.lookup import find_manifest
from dsd_lab.report.page.page import Page, write_html, write_markdown
from dsd_lab.report.page.tidying import only_new_files
from dsd_lab.report.results import results_of
from dsd_lab.report.write import write_part
from dsd_lab.specs.report import ReportSettings
from dsd_lab.store.mlflow_store import Store

_LONGEST = 200
"""Characters of a folder's name."""


def run(arguments: argparse.Namespace) -> int:
    """Report one sweep, or several in one report."""
    home = home_of(arguments)
    found = [find_manifest(home, name, arguments.profile) for name in arguments.sweep or [None]]
    manifests = list({m["key"]: m for m in found}.values())
    folder = Path(arguments.out) if arguments.out else home.report_folder(_folder_name([m["key"] for m in manifests]))
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder}: is a file; name a folder")
    store = Store(home, arguments.tracking_uri)
    with only_new_files(folder):
        made = [_part(store, m, folder / m["key"] if len(manifests) > 1 else folder) for m in manifests]
        pages = [page for page, _ in made]
        write_html(pages, folder)
        write_markdown(pages, folder)
    for manifest in manifests:
        store.attach_report(manifest, folder, "report" if len(manifests) == 1 else f"reports/{folder.name}")
    if arguments.json:
        contents = [content for _, content in made]
        print_json(contents[0] if len(contents) == 1 else {"sweeps": contents})
        return OK
    for page in pages:
        for line in [*([f"{page.title}:"] if len(pages) > 1 else []), *page.notices, *page.answer]:
            print(line)
    print(f"report: {(folder / 'report.html').resolve()}")
    command, at = program(arguments)
    print(f"MLflow: {command} ui{at}")
    return OK


def _part(store: Store, manifest: dict[str, Any], folder: Path) -> tuple[Page, dict[str, Any]]:
    settings = ReportSettings.model_validate(manifest["spec"]["report"])
    store.sync(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        results = results_of(store, manifest, Path(scratch))
        print(f"dsd-lab: drawing the figures of {len(results)} trials", file=sys.stderr)
        return write_part(results, settings, manifest, folder)


def _folder_name(keys: list[str]) -> str:
    """The keys of the sweeps; where they are too many for a file's name, the first and a digest of all."""
    name = "+".join(keys)
    return name if len(name) <= _LONGEST else f"{keys[0]}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"
