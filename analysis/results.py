"""Every result of README and docs/results.md by one command: `python analysis/results.py [NAME ...]`.

Without a name it lists the results, with the trials that are left and the hours that these will take here. With names it
prints the hours, then sweeps, reports, copies the figures and executes the notebooks of each. It can be stopped at any time;
the same command goes on. RESULTS/NAME/result.json says which commit, training code, versions, machine and seeds made it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsd_lab.files.atomic import write_json
from dsd_lab.provenance import provenance
from dsd_lab.units import duration

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent


@dataclass(frozen=True)
class Result:
    """One sweep and what is made from it."""

    spec: str
    profile: str
    shows: str
    """Where its numbers stand."""
    notebooks: tuple[str, ...] = ()
    """Of this folder, executed when all sweeps that they read are there."""
    figures: dict[str, str] = field(default_factory=dict)
    """File below `figures/` -> figure of the report that it is a copy of."""
    sets: tuple[str, ...] = ()


RESULTS = {
    "digits": Result("collapse_ablation", "full", "README, docs/results.md#digits", ("collapse_ablation", "predictors", "paper_tables"), {"collapse_ablation.png": "verdicts.png"}),
    "digits-quick": Result("collapse_ablation", "quick", "analysis/LOG.md", ("predictors",)),
    "normalisers": Result("normaliser_ablation", "quick", "docs/results.md#normalisers", ("theory_vs_measurement",)),
    "mnist": Result("mnist", "quick", "docs/results.md#mnist"),
    "flowers": Result("flowers64", "quick", "docs/results.md#flowers", (), {"flowers64_verdicts.png": "verdicts.png"}),
    "sizes": Result("size_scaling", "quick", "analysis/size_scaling.ipynb", ("size_scaling",)),
    "needs": Result("what_dsd_needs", "quick", "docs/results.md#what-dsd-needs", ("what_dsd_needs",)),
    "recipe": Result("dsd_recipe", "quick", "docs/results.md#what-dsd-needs", ("what_dsd_needs",), {"dsd_recipe_differences.png": "differences.png"}),
    "recipe-fresh": Result("dsd_recipe", "fresh", "docs/results.md#what-dsd-needs"),
    "recipe-sizes": Result("recipe_sizes", "quick", "docs/results.md#what-dsd-needs"),
    "rival-cures": Result("rival_cures", "full", "rival cures, the first question of the science", ("predictors",)),
    "without-stop-gradient": Result("without_stop_gradient", "full", "one figure across normalisers", ("without_stop_gradient",)),
    "without-stop-gradient-raw": Result("without_stop_gradient", "raw", "its part with a decoder that reads raw latents", ("without_stop_gradient",)),
    "regimes-quick": Result("regime_map", "quick", "where joint training wins", ("regime_map",)),
    "regimes-width": Result("regime_map", "width", "the same against the width of the network"),
    "regimes-mnist": Result("regime_map", "mnist", "the same on MNIST"),
    "regimes": Result("regime_map", "full", "the same at tuned rates"),
    "slow-collapse": Result("slow_collapse", "full", "slow collapse and what said so before", ("slow_collapse",)),
    "paper-mini-rates": Result("paper_mini", "rates", "learning rate of the paper's table in miniature, on other seeds"),
    "paper-mini": Result("paper_mini", "full", "the paper's table in miniature", ("paper_mini",)),
}  # fmt: skip
"""In the order in which they are best made."""


def main(arguments: argparse.Namespace) -> None:
    """List results, or make some."""
    unknown = [name for name in arguments.names if name not in RESULTS]
    if unknown:
        sys.exit(f"no result {', '.join(unknown)}; there are {', '.join(RESULTS)}")
    if not arguments.names:
        print(f"{'result':26} {'left':>11} {'hours here':>10}  sweep")
        for name, result in RESULTS.items():
            left, trials, seconds = planned(result, arguments)
            hours = "?" if seconds is None else f"{seconds / 3600:.1f}"
            print(f"{name:26} {left:>4} of {trials:<4} {hours:>9}  {result.spec} --profile {result.profile}: {result.shows}")  # fmt: skip
        print("make one: python analysis/results.py NAME, or make results RESULT=NAME")
    for name in arguments.names:
        make(name, RESULTS[name], arguments)


def planned(result: Result, arguments: argparse.Namespace) -> tuple[int, int, float | None]:
    """Trials that are left, all trials, and seconds that those left take with a trial a core; None where that is not known."""
    answer = subprocess.run(_command("plan", result, arguments, "--json"), capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr.strip() or f"plan of {result.spec} failed")
    trials = {t["id"]: t for t in json.loads(answer.stdout)["trials"]}
    left = [t for t in trials.values() if t["status"] != "done"]
    return len(left), len(trials), sum(t["seconds"] for t in left) / len(os.sched_getaffinity(0))


def make(name: str, result: Result, arguments: argparse.Namespace) -> None:
    """One result, from where it stands."""
    left, trials, seconds = planned(result, arguments)
    told = "" if seconds is None else f", about {duration(seconds)} of training here, evaluations beside"
    print(f"{name}: {left} of {trials} trials left{told}", flush=True)
    began, sweep = time.time(), _command("sweep", result, arguments)
    _run(sweep)
    key, out = f"{result.spec}--{result.profile}", Path(arguments.out) / name
    _run([*_program(), "report", key, "--home", arguments.home, "--out", str(out)])
    for copy, figure in result.figures.items():
        shutil.copyfile(out / "figures" / figure, FOLDER / "figures" / copy)
    for notebook in result.notebooks:
        # In its own process: a kernel's failure, such as of a sweep that is not there yet, ends no other result.
        done = subprocess.run([sys.executable, str(FOLDER / "execute.py"), arguments.home, notebook])
        if done.returncode:
            print(f"{name}: notebook {notebook} was not executed; it reads sweeps that are not there yet", flush=True)
    rows = json.loads(subprocess.run(_command("plan", result, arguments, "--json"), capture_output=True, text=True, check=True).stdout)["trials"]  # fmt: skip
    record: dict[str, Any] = {
        **provenance(),
        "result": name,
        "command": " ".join(sweep[2:]),
        "seeds": sorted({r["seed"] for r in rows}),
        "trials": {state: sum(r["status"] == state for r in rows) for state in sorted({r["status"] for r in rows})},
        "planned_seconds": seconds,
        "seconds": round(time.time() - began, 1),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_json(out / "result.json", record)
    print(f"{name}: {out / 'report.html'}, {out / 'result.json'}", flush=True)


def _program() -> list[str]:
    return [sys.executable, "-m", "dsd_lab"]


def _command(verb: str, result: Result, arguments: argparse.Namespace, *more: str) -> list[str]:
    spec = str(ROOT / "experiments" / f"{result.spec}.yaml")
    sets = [word for value in (*result.sets, *arguments.set) for word in ("--set", value)]
    return [*_program(), verb, spec, "--profile", result.profile, "--home", arguments.home, *sets, *more]


def _run(command: list[str]) -> None:
    if (code := subprocess.run(command).returncode) != 0:
        sys.exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="results to make; none lists them")
    parser.add_argument("--home", default=str(ROOT / "runs"), help="home folder (default: %(default)s)")
    parser.add_argument("--out", default=str(ROOT / "runs" / "results"), help="where reports go (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override, as of dsd-lab sweep, such as base.data.path=DIR")  # fmt: skip
    main(parser.parse_args())
