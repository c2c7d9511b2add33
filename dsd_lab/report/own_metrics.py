"""Plug-ins in reports: their metrics (labels from the loaded plug-in, else from the trials' records) and their parts."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from dsd_lab.report.results import Result
from dsd_lab.report.tables.rendering import Cell, Table
from dsd_lab.specs.metrics import Metric
from dsd_lab.specs.registry import shown_metrics


def own_latent(results: list[Result]) -> list[Metric]:
    """Plug-ins' latent metrics in these results."""
    present = {name for r in results for name in r.metrics}
    found = sorted((key, s) for key, s in _shown(results).items() if key.startswith("latent/") and key in present)
    return [_metric(key, shown) for key, shown in found]


def own_samples(results: list[Result]) -> list[Metric]:
    """The plug-ins' metrics of samples that these results have."""
    names = {"/".join(name.split("/")[:2]) for r in results for name in r.metrics if name.startswith("sample/")}
    shown = _shown(results)
    unknown = {"unit": "", "digits": 3, "note": "of a plug-in"}  # evaluated later, with a plug-in that is not loaded
    named = {key: unknown | {"label": key.partition("/")[2].replace("_", " ")} for key in sorted(names)}
    return [_metric(key, shown.get(key, default)) for key, default in named.items()]


def own_parts_table(results: list[Result]) -> Table | None:
    """The parts of plug-ins that trained or measured trials, with file and digest of each; None without any."""
    rows: dict[tuple[str, ...], int] = {}
    for result in results:
        for key, digest, recorded in _parts_of(result):
            kind, _, name = key.partition("/")
            loaded = result.record.provenance.plugins
            plugin = str(recorded.get("plugin") or ", ".join(sorted(loaded)) or "unknown")
            row = (name, kind.replace("_", " "), plugin, str(recorded.get("file") or f"{plugin}.py"), digest)
            rows[row] = rows.get(row, 0) + 1
    if not rows:
        return None
    header = ["part", "kind", "plug-in", "file", "digest"]
    frame = pd.DataFrame([dict(zip(header, row, strict=True)) | {"trials": n} for row, n in sorted(rows.items())])
    cells = [[*map(Cell, row), Cell(str(count))] for row, count in sorted(rows.items())]
    note = "The digest is a hash of the code that a part can depend on. The home folder keeps the files in plugins/."
    return Table("own_parts", "Parts of plug-ins", [*header, "trials"], cells, frame, note)


def _parts_of(result: Result) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind/name, digest and record of each part; metrics and samplers only if they have a value."""
    if result.description is None:
        return []
    used, recorded = result.description.canonical.get("plugins", {}), result.description.own_parts
    found: list[tuple[str, str, dict[str, Any]]] = [(k, str(d), dict(recorded.get(k, {}))) for k, d in used.items()]
    for key, part in recorded.items():
        if key not in used and _has_value(result, *key.split("/", 1)):
            found.append((key, part.get("digest", ""), dict(part)))
    return found


def _has_value(result: Result, kind: str, name: str) -> bool:
    if kind == "sampler":
        pattern = rf"[^/]+/.*-{re.escape(name)}\d.*"
    else:
        pattern = rf"{'latent' if kind == 'latent_metric' else 'sample'}/{re.escape(name)}(/.*)?"
    return any(re.fullmatch(pattern, metric) for metric in result.metrics)


def _shown(results: list[Result]) -> dict[str, dict[str, Any]]:
    recorded = {
        key: shown.model_dump() for r in results for key, shown in (r.record.shown if r.description else {}).items()
    }
    return recorded | shown_metrics()


def _metric(key: str, shown: dict[str, Any]) -> Metric:
    note = str(shown["note"] or "of a plug-in")
    return Metric(key.partition("/")[2], shown["label"], shown["digits"], note, unit=shown["unit"], recorded=key)
