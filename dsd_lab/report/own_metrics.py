"""How reports show plug-ins' metrics: by the loaded plug-ins, else by what the trials' records say."""

from __future__ import annotations

from typing import Any

from dsd_lab.report.results import Result
from dsd_lab.report.statistics.intervals import ANY, Range
from dsd_lab.specs.registry import shown_metrics


def own_latent(results: list[Result]) -> list[tuple[str, str, int, str]]:
    """Name, label, digits and note of the plug-ins' latent metrics that these results have."""
    present = {name for r in results for name in r.metrics}
    found = sorted((key, s) for key, s in _shown(results).items() if key.startswith("latent/") and key in present)
    return [(key, _label(s), s["digits"], s["note"] or "of a plug-in") for key, s in found]


def own_samples(results: list[Result]) -> dict[str, tuple[str, int, str, Range]]:
    """Label, digits, note and range of the plug-ins' metrics of samples, by the name without settings."""
    names = {"/".join(name.split("/")[:2]) for r in results for name in r.metrics if name.startswith("sample/")}
    shown = _shown(results)
    unknown = {"unit": "", "digits": 3, "note": "of a plug-in"}  # evaluated later, with a plug-in that is not loaded
    found = {key: shown.get(key, unknown | {"label": key.partition("/")[2].replace("_", " ")}) for key in sorted(names)}
    return {key: (_label(s), s["digits"], s["note"], ANY) for key, s in found.items()}


def _shown(results: list[Result]) -> dict[str, dict[str, Any]]:
    recorded = {
        key: shown.model_dump() for r in results for key, shown in (r.record.shown if r.description else {}).items()
    }
    return recorded | shown_metrics()


def _label(shown: dict[str, Any]) -> str:
    return str(shown["label"]) + (f", {shown['unit']}" if shown["unit"] else "")
