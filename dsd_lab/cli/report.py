"""`dsd-lab report`: update the store, then write tables, figures and pages from it."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from dsd_lab.cli.options import home_of, place_of, print_json, program, store_option
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.printable import say
from dsd_lab.home.lookup import find_manifest
from dsd_lab.home.outputs import Output
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_folder import ENDED
from dsd_lab.report.page.page import Page, summary, write_html, write_markdown
from dsd_lab.report.results import stored_results
from dsd_lab.report.statistics.verdicts import judge, row_key
from dsd_lab.report.write import write_part
from dsd_lab.specs.report import ReportSettings, XAxis
from dsd_lab.store.current import noted
from dsd_lab.store.mlflow_store import Store

_MAX_NAME = 200
"""Characters of a folder's name."""


def run(arguments: argparse.Namespace) -> int:
    """Report one or more sweeps in one report."""
    home = home_of(arguments)
    found = [find_manifest(home, name, arguments.profile) for name in arguments.sweep or [None]]
    manifests = list({m.key: m for m in found}.values())
    folder = (
        place_of(arguments.out, "--out")
        if arguments.out
        else home.report_folder(_folder_name([m.key for m in manifests]))
    )
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder}: is a file; give a folder")
    output = Output(home, folder, f"--out {folder}", aside=arguments.out is None)
    output.check(["report.html", "report.md"])
    store = Store(home, arguments.tracking_uri)
    place = "report" if len(manifests) == 1 else f"reports/{folder.name}"
    with tempfile.TemporaryDirectory() as scratch, noted(home, manifests, arguments.tracking_uri):
        drawn = Path(scratch)
        parts = [drawn / m.key if len(manifests) > 1 else drawn for m in manifests]
        made = [_part(store, m, part, arguments.x) for m, part in zip(manifests, parts, strict=True)]
        pages = [part.page for part in made]
        write_html(pages, drawn)
        write_markdown(pages, drawn)
        output.publish(drawn, {m.key: part.finished for m, part in zip(manifests, made, strict=True)})
        for manifest, part in zip(manifests, made, strict=True):
            store.attach_report(manifest, folder, summary(part.page), part.verdicts, place)
    if arguments.json:
        contents = [part.content for part in made]
        print_json(contents[0] if len(contents) == 1 else {"sweeps": contents})
        return OK
    for page in pages:
        for line in [*([f"{page.title}:"] if len(pages) > 1 else []), *page.notices, *page.answer]:
            say(line)
    say(f"report: {(folder / 'report.html').resolve()}")
    command, at = program(arguments)
    say(f"MLflow: {command} ui{at}{store_option(arguments)}")
    return OK


class _Part(NamedTuple):
    """One sweep's part of a report."""

    page: Page
    content: dict[str, Any]
    """For `--json`."""
    finished: int
    """Ended trials."""
    verdicts: dict[str, str | None]
    """By trial id."""


def _part(store: Store, manifest: Manifest, folder: Path, x: XAxis | None) -> _Part:
    """Write a sweep's tables and figures."""
    settings = ReportSettings.model_validate(manifest.spec["report"] | ({} if x is None else {"x": x}))
    with stored_results(store, manifest) as results:
        say(f"dsd-lab: drawing the figures of {len(results)} trials", error=True)
        finished = sum(result.finished or result.state in ENDED for result in results)
        judged = judge(results, settings)
        verdicts = {r.id: judged[row_key(r)].verdict for r in reversed(results)}
        return _Part(*write_part(results, settings, manifest, folder), finished, verdicts)


def _folder_name(keys: list[str]) -> str:
    """The sweeps' keys, shortened to the first key and a digest if they are too long for a file name."""
    name = "+".join(keys)
    return name if len(name) <= _MAX_NAME else f"{keys[0]}+{hashlib.sha256(name.encode()).hexdigest()[:12]}"
