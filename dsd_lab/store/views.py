"""Saved views of MLflow's pages: a table of a sweep's trials with the main columns and charts.

MLflow keeps a view in a tag of the experiment, lists it under "Views", and opens it by URL. The tag
`mlflow.sharedViewState.ID` is a JSON object with the view's name, date and state; the state is JSON, deflated and
base64-encoded (read from the pages of MLflow 3.17). Versions without such tags ignore them.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient

from dsd_lab.home.sweep_records import Manifest
from dsd_lab.specs.metrics import LATENT, STD

PREFIX = "mlflow.sharedViewState."
MAX_DISTANCES = 3
"""FIDs with columns and charts in a view; the list of metrics has all."""
_TRIALS = "trials"
_COLUMNS = tuple(metric.recorded for metric in (STD, *LATENT) if metric.main)
_CHARTS = {
    "Latents": tuple(metric.recorded for metric in (STD, *LATENT) if metric.table),
    "Losses": ("train/reconstruction", "train/diffusion", "train/loss"),
}
"""Metrics over steps, by section of their charts."""
_WIDTHS = {
    "params.`variant`": 80,
    "params.`seed`": 45,
    "params.`size`": 58,
    "tags.`dsd.verdict`": 92,
    "metrics.`latent/std`": 72,
    "metrics.`latent/effective_rank/token`": 95,
    "metrics.`latent/capacity_bits/token`": 95,
}
"""In pixels. With one FID, all columns fit a window of 1,280 pixels."""
_WIDTH = 77


def views_of(manifest: Manifest, home_id: str, distances: list[str]) -> dict[str, str]:
    """Tags of an experiment that hold the views of a sweep.

    Args:
        manifest: of the sweep.
        home_id: of its home folder, since homes that share a store may have sweeps of the same name.
        distances: metric names of its FIDs.
    """
    key, made = manifest.key, int(1000 * manifest.run_at)
    tags: dict[str, str] = {}
    # MLflow lists the newest view first: trials above means.
    for name, grouped, at in ((f"{key}: trials", False, made + 1), (f"{key}: means of variants", True, made)):
        state = json.dumps(_state(manifest, home_id, distances, grouped), separators=(",", ":"))
        packed = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
        tags[PREFIX + _view_id(key, home_id, grouped)] = json.dumps({"name": name, "createdAt": at, "state": packed})
    return tags


def newest_view(client: MlflowClient, home_id: str) -> str | None:
    """URL fragment of the view of a home's latest sweep; None where there is none.

    Args:
        client: of the store.
        home_id: of the home folder; empty: any home.
    """
    condition = f"tags.`dsd.home` = '{home_id}'" if home_id else None
    found: list[tuple[int, str]] = []
    token = None
    while True:
        page = client.search_experiments(filter_string=condition, page_token=token)
        for experiment in page:
            for tag, value in experiment.tags.items():
                made = re.search(r'"createdAt": (\d{1,15})', value)  # the tag may be foreign
                if made and re.match(rf"{re.escape(PREFIX)}{home_id[:8] or '[0-9a-f]{8}'}-{_TRIALS}-", tag):
                    found.append((int(made[1]), _page(experiment.experiment_id, tag.removeprefix(PREFIX))))
        token = page.token
        if not token:
            return max(found)[1] if found else None


def _page(experiment: str, view: str) -> str:
    return f"/experiments/{experiment}/runs?viewStateShareKey={quote(view)}"


def _view_id(key: str, home_id: str, grouped: bool) -> str:
    return f"{home_id[:8]}-{'variants' if grouped else _TRIALS}-{key}"


def _state(manifest: Manifest, home_id: str, distances: list[str], grouped: bool) -> dict[str, Any]:
    axes = ["variant", *(manifest.spec.get("grid") or {})]
    average = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": axis} for axis in axes]}
    columns = [_column("params", name) for name in (*axes, "seed", "size")]
    columns += [_column("tags", "dsd.verdict"), *(_column("metrics", name) for name in (*_COLUMNS, *distances))]
    charts = [_chart("LINE", metric, section) for section, metrics in _CHARTS.items() for metric in metrics]
    charts += [_chart("BAR", metric, "Samples") for metric in distances]
    return {
        "searchFilter": f"tags.`dsd.sweep` = '{manifest.key}' and tags.`dsd.home` = '{home_id}' and tags.`dsd.kind` != 'sweep'",
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": _WIDTHS | {_column("metrics", name): _WIDTH for name in distances},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "groupBy": average if grouped else None,
        "useGroupedValuesInCharts": True,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": 2, "cardHeight": 300}
            for name in (*_CHARTS, "Samples")
        ],
        "compareRunCharts": charts,
    }


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    """A chart of a metric per run or group; other settings of lines are MLflow's defaults."""
    chart: dict[str, Any] = {"uuid": f"{kind} {metric}", "type": kind, "metricSectionId": section, "metricKey": metric}
    chart |= {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    if kind == "LINE":
        chart |= {"selectedMetricKeys": [metric], "scaleType": "linear", "xAxisKey": "step", "xAxisScaleType": "linear"}
        chart |= {"lineSmoothness": 0, "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": []}
        chart |= {"range": {}, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return chart
