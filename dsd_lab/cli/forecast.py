"""`dsd-lab forecast`: learn from finished trials to forecast collapse early, and measure how well that works."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import OK, BadInput
from dsd_lab.files.atomic import write_json
from dsd_lab.files.bounded import read_json
from dsd_lab.files.printable import say
from dsd_lab.home.home import Home
from dsd_lab.specs.report import ReportSettings

FILE = "forecast.json"


GOOD = 0.95
"""AUC, leaving one spec out and one data set out, from which a forecast is worth stopping trials for (ours)."""


def run(arguments: argparse.Namespace) -> int:
    """Fit, evaluate and write the forecasts, one per look, and evaluate what the closed forms predict."""
    from dsd_lab.report.statistics.forecast_judged import fit
    from dsd_lab.report.statistics.forecast_theory import LEARNT, all_examples, judge_stopper, judgements, remarks
    from dsd_lab.runs.early_stopping import FEATURES, LOOKS, as_json

    home = home_of(arguments)
    homes = [home, *(Home(Path(other)) for other in arguments.more)]
    for other in homes:
        if not other.manifests():
            raise BadInput(f"no sweep has been run in {other.root}; run `dsd-lab sweep SPEC` first")
    sweeps = list(_sweeps(homes))
    examples, lacking = all_examples(sweeps)
    looks = zip(LOOKS, LEARNT, strict=True)
    forecasts = [f for look, name in looks if (f := fit(examples[name], look)) is not None]
    stopper = judge_stopper(examples)
    judged = judgements(examples)
    first = next(iter(LEARNT))
    said = list(dict.fromkeys((*stopper[0].said, *stopper[1].said)))
    trials = {e.trial: e.collapsed for name in LEARNT for e in examples[name]}
    if lacking[first]:
        said.append(
            f"{lacking[first]} trials have no first look: their first {LOOKS[0]:.0%} of steps lack a probe or a record."
        )
    foreign = {result.id for _, results, _ in sweeps for result in results if result.imported is not None}
    if count := len(foreign & trials.keys()):
        said.append(f"{count} of the trials are imported, not trained in these home folders.")
    if not forecasts:
        said.append("There is no forecast: it needs trials that collapsed and trials that did not.")
    said.append(_worth(*(j.auc for j in stopper)))
    answer = {
        "trials": len(trials),
        "collapsed": sum(trials.values()),
        "looks": [f.look for f in forecasts],
        "file": str((home.root / FILE).resolve()) if forecasts else None,
        "weights": dict(zip(FEATURES, forecasts[0].weights, strict=True)) if forecasts else {},
        "leave_one_spec_out": _numbers(stopper[0]),
        "leave_one_data_set_out": _numbers(stopper[1]),
        "forecasts": [
            {"name": name, "lacking": lacking.get(name), "spec_out": _numbers(spec), "data_set_out": _numbers(data)}
            for name, (spec, data) in judged.items()
        ],
        "remarks": remarks(judged),
        "said": said,
    }
    if forecasts:
        write_json(home.root / FILE, as_json(forecasts) | {"judged": answer["leave_one_spec_out"]})
    if arguments.json:
        print_json(answer)
    else:
        _print(answer)
    return OK


def _numbers(judgement: Any) -> dict[str, Any]:
    return {k: v for k, v in asdict(judgement).items() if k != "said"}


def _worth(spec: float | None, data: float | None) -> str:
    """Whether early stopping, which uses all looks, is good enough to be used."""
    if spec is None or data is None:
        return f"Whether it is worth stopping trials by (an AUC of {GOOD} with a spec and with a data set left out) is not known."
    worst = min(spec, data)
    verdict = "is" if worst >= GOOD else "is not"
    return (
        f"The forecast {verdict} worth stopping trials by: with the highest chance of all looks, at any of which a trial "
        f"would be stopped, the lower AUC is {worst:.3f}; {GOOD} is asked."
    )


def load_forecast(home: Home) -> Any:
    """The forecasts of a home folder, one per look.

    Raises:
        BadInput: there is none, or it is from another version.
    """
    path = home.root / FILE
    if not path.exists():
        raise BadInput(f"{path}: no forecast yet; create it from finished sweeps with `dsd-lab forecast`")

    from dsd_lab.runs.early_stopping import from_json

    try:
        return from_json(read_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: cannot be used: {error}; create it again with `dsd-lab forecast`") from None


def _sweeps(homes: list[Home]) -> Iterator[tuple[str, list[Any], ReportSettings]]:
    from dsd_lab.report.results import stored_results
    from dsd_lab.store.mlflow_store import Store

    for home in homes:
        for manifest in home.manifests().values():
            with stored_results(Store(home), manifest) as results:
                yield manifest.name, results, ReportSettings.model_validate(manifest.spec["report"])


def _print(answer: dict[str, Any]) -> None:
    say(f"{answer['trials']} trials with a diffusion loss, {answer['collapsed']} of them collapsed")
    for name, weight in answer["weights"].items():
        say(f"  first look: {weight:+.2f} per standard deviation of: {name}")
    found = answer["leave_one_spec_out"]
    if found["specs"]:
        say(
            f"highest chance of all looks, forecast from the other specs ({', '.join(found['specs'])}): "
            f"AUC {_auc(found)} over {found['trials']} trials"
        )
        say(f"  Brier score {found['brier']:.3f}; base rate alone {found['brier_base']:.3f}")
        for row in found["calibration"]:
            say(
                f"  probability {row['low']:.0%} to {row['high']:.0%}: {row['trials']} trials, mean {row['mean_chance']:.0%}, "
                f"{round(row['collapsed'] * row['trials'])} collapsed"
            )
        say(
            "over the trials that every forecast has: AUC and Brier score with a spec left out; AUC with a data set left out:"
        )
        for row in answer["forecasts"]:
            spec, data = row["spec_out"], row["data_set_out"]
            brier = "-" if spec["brier"] is None else f"{spec['brier']:.3f}"
            say(f"  {_auc(spec):>5} {brier:>5} {_auc(data):>5}  {row['name']} ({spec['trials']} trials)")
    for line in dict.fromkeys((*answer["said"], *answer["remarks"])):
        say(line)
    if answer["file"]:
        say(f"written to {answer['file']}; `dsd-lab sweep --stop-collapsed CHANCE` uses it")


def _auc(judgement: dict[str, Any]) -> str:
    return "-" if judgement["auc"] is None else f"{judgement['auc']:.3f}"
