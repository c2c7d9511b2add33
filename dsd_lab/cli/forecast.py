"""`dsd-lab forecast`: learn from finished trials to forecast collapse early, and measure how well that works."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.atomic import write_json
from dsd_lab.files.bounded import read_json
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.specs.report import ReportSettings

FILE = "forecast.json"


def run(arguments: argparse.Namespace) -> int:
    """Fit, evaluate and write the forecast."""
    from dsd_lab.report.statistics.forecast_judged import Example, fit, judge_forecast
    from dsd_lab.runs.early_stopping import WINDOW

    home = home_of(arguments)
    homes = [home, *(Home(Path(other)) for other in arguments.more)]
    for other in homes:
        if not other.manifests():
            raise BadInput(f"no sweep has been run in {other.root}; run `dsd-lab sweep SPEC` first")
    examples: list[Example] = []
    missing, foreign = 0, set[str]()
    for other in homes:
        for manifest in other.manifests().values():
            found, less, others = _examples(other, manifest)
            examples += found
            missing += less
            foreign |= others
    judgement, forecast = judge_forecast(examples), fit(examples)
    said = list(judgement.said)
    trials = {e.trial: e.collapsed for e in examples}
    if missing:
        said.append(f"{missing} trials are left out: their first {WINDOW:.0%} of steps lack a probe or a record.")
    if count := len(foreign & trials.keys()):
        said.append(f"{count} of the trials are imported, not trained in these home folders.")
    if forecast is None:
        said.append("There is no forecast: it needs trials that collapsed and trials that did not.")
    answer = {
        "trials": len(trials),
        "collapsed": sum(trials.values()),
        "window": WINDOW,
        "file": str((home.root / FILE).resolve()) if forecast else None,
        "weights": dict(zip(forecast.features, forecast.weights, strict=True)) if forecast else {},
        "leave_one_spec_out": {k: v for k, v in asdict(judgement).items() if k != "said"},
        "said": said,
    }
    if forecast is not None:
        write_json(home.root / FILE, forecast.as_json() | {"judged": answer["leave_one_spec_out"]})
    if arguments.json:
        print_json(answer)
    else:
        _print(answer)
    return OK


def load_forecast(home: Home) -> Any:
    """The forecast of a home folder.

    Raises:
        BadInput: there is none, or it is from another version.
    """
    path = home.root / FILE
    if not path.exists():
        raise BadInput(f"{path}: no forecast yet; create it from finished sweeps with `dsd-lab forecast`")

    from dsd_lab.runs.early_stopping import Forecast

    try:
        return Forecast.from_json(read_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: cannot be used: {error}; create it again with `dsd-lab forecast`") from None


def _examples(home: Home, manifest: Manifest) -> tuple[list[Any], int, set[str]]:
    """Examples of a sweep, how many of its trials recorded too little, and the ids of those that were imported."""
    from dsd_lab.report.results import results_of
    from dsd_lab.report.statistics.forecast_judged import examples_of
    from dsd_lab.report.statistics.verdicts import judge, row_key
    from dsd_lab.store.mlflow_store import Store

    store = Store(home)
    store.sync(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        results = results_of(store, manifest, Path(scratch))
    judged = judge(results, ReportSettings.model_validate(manifest.spec["report"]))
    examples, lacking = examples_of(manifest.name, results, [judged[row_key(r)] for r in results])
    return examples, lacking, {r.id for r in results if r.imported is not None}


def _print(answer: dict[str, Any]) -> None:
    say(f"{answer['trials']} trials with a diffusion loss, {answer['collapsed']} of them collapsed")
    for name, weight in answer["weights"].items():
        say(f"  {weight:+.2f} per standard deviation of: {name}")
    found = answer["leave_one_spec_out"]
    if found["specs"]:
        auc = "-" if found["auc"] is None else f"{found['auc']:.3f}"
        say(f"forecast from the other specs ({', '.join(found['specs'])}): AUC {auc} over {found['trials']} trials")
        say(f"  Brier score {found['brier']:.3f}; base rate alone {found['brier_base']:.3f}")
        for row in found["calibration"]:
            say(
                f"  probability {row['low']:.0%} to {row['high']:.0%}: {row['trials']} trials, mean {row['mean_chance']:.0%}, "
                f"{round(row['collapsed'] * row['trials'])} collapsed"
            )
    for line in answer["said"]:
        say(line)
    if answer["file"]:
        say(f"written to {answer['file']}; `dsd-lab sweep --stop-collapsed CHANCE` uses it")
