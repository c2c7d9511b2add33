"""The results of README and docs/results.md, each by one command: `python analysis/results.py [NAME ...]`.

Without a name it lists the results, with the trials that are left and the hours that they will take here. With names it
prints the hours, then runs the sweep, writes the report, copies the figures, executes the notebooks and keeps the
records of each. It can be stopped at any time; the same command continues. OUT/NAME/result.json has the seeds, and the
commits, training code, versions and machines that trained the trials.

OUT/NAME/records.tar.xz has the records of the trials, without weights and pictures; records/ has those of at most 1 MiB.
With `--from-records` they are imported, and nothing is trained.

Exit code 1: a notebook failed; all else was made. A notebook that reads sweeps that have not been run yet is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsd_lab.errors import OK, UNEXPECTED
from dsd_lab.files.atomic import write_json
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import ENDED
from dsd_lab.provenance import provenance
from dsd_lab.units import duration, readable

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RECORDS = FOLDER / "records"
"""Kept in the repository: NAME.tar.xz, as `dsd-lab export --anonymous --no-pictures` writes it."""
LARGEST = 2**20
"""Bytes of an archive that the repository keeps."""
FINISHED = (*ENDED, "stale")
"""States of trials that a sweep does not train again: stale ones were trained by other code, and are reported."""
NO_SWEEP = 3
"""Exit code of `execute.py` for a notebook that reads a sweep that has not been run."""


@dataclass(frozen=True)
class Result:
    """One sweep and what is made from it."""

    spec: str
    profile: str
    shows: str
    """Where its numbers are published."""
    notebooks: tuple[str, ...] = ()
    """Notebooks of this folder that read it."""
    figures: dict[str, str] = field(default_factory=dict)
    """File below `figures/` -> figure of the report that is copied there."""
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
    "rival-cures": Result("rival_cures", "quick", "docs/results.md#rival-fixes", ("predictors",), {"rival_cures.png": "verdicts.png"}),
    "rival-cures-long": Result("rival_cures", "full", "the same over 3,000 steps"),
    "without-stop-gradient": Result("without_stop_gradient", "quick", "one figure across normalisers", ("without_stop_gradient",)),
    "without-stop-gradient-long": Result("without_stop_gradient", "full", "the same over 3,000 steps"),
    "without-stop-gradient-raw": Result("without_stop_gradient", "raw", "its part with a decoder that reads raw latents", ("without_stop_gradient",)),
    "regimes-quick": Result("regime_map", "quick", "where joint training wins", ("regime_map",)),
    "regimes-width": Result("regime_map", "width", "the same against the width of the network"),
    "regimes-mnist": Result("regime_map", "mnist", "the same on MNIST"),
    "regimes": Result("regime_map", "full", "the same at tuned rates"),
    "slow-collapse": Result("slow_collapse", "full", "slow collapse and what said so before", ("slow_collapse",)),
    "paper-mini-rates": Result("paper_mini", "rates", "learning rate of the paper's table in miniature, on other seeds"),
    "paper-mini": Result("paper_mini", "full", "the paper's table in miniature", ("paper_mini",)),
}  # fmt: skip
"""In the order in which they should be made."""


def main(arguments: argparse.Namespace) -> int:
    """List results, or make some. Returns the exit code."""
    unknown = [name for name in arguments.names if name not in RESULTS]
    if unknown:
        sys.exit(f"no result {', '.join(unknown)}; there are {', '.join(RESULTS)}")
    if not arguments.names:
        print(f"{'result':26} {'left':>11} {'hours here':>10}  sweep")
        for name, result in RESULTS.items():
            rows = planned(result, arguments)
            left, hours = unfinished(rows), f"{seconds_of(rows) / 3600:.1f}"
            print(f"{name:26} {len(left):>4} of {len(rows):<4} {hours:>9}  {result.spec} --profile {result.profile}: {result.shows}")  # fmt: skip
        print("make one: python analysis/results.py NAME, or make results RESULT=NAME")
    failed = [notebook for name in arguments.names for notebook in make(name, RESULTS[name], arguments)]
    if failed:
        print(f"failed notebooks: {', '.join(failed)}", flush=True)
    return UNEXPECTED if failed else OK


def planned(result: Result, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The trials of a result, each once, as `dsd-lab plan --json` has them."""
    answer = subprocess.run(_command("plan", result, arguments, "--json"), capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr.strip() or f"plan of {result.spec} failed")
    return list({t["id"]: t for t in json.loads(answer.stdout)["trials"]}.values())


def unfinished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials that a sweep would train."""
    return [row for row in rows if row["status"] not in FINISHED]


def seconds_of(rows: list[dict[str, Any]]) -> float:
    """Estimated training time of the unfinished trials, one trial per core."""
    return float(sum(row["seconds"] for row in unfinished(rows)) / len(os.sched_getaffinity(0)))


def make(name: str, result: Result, arguments: argparse.Namespace) -> list[str]:
    """Make one result, from where it is. Returns the notebooks that failed."""
    if arguments.from_records:
        import_records(name, arguments)
    rows = planned(result, arguments)
    seconds = seconds_of(rows)
    print(f"{name}: {len(unfinished(rows))} of {len(rows)} trials left, about {duration(seconds)} of training here, plus evaluations", flush=True)  # fmt: skip
    began, sweep = time.time(), _command("sweep", result, arguments)
    if not arguments.from_records:
        _run(sweep)
    key, out = f"{result.spec}--{result.profile}", Path(arguments.out) / name
    _run([*_program(), "report", key, "--home", arguments.home, "--out", str(out)])
    for copy, figure in result.figures.items():
        shutil.copyfile(out / "figures" / figure, FOLDER / "figures" / copy)
    if not arguments.from_records:
        keep_records(name, key, out, arguments.home)
    failed = []
    for notebook in result.notebooks:
        # In its own process, so that a failing kernel ends nothing else.
        code = subprocess.run([sys.executable, str(FOLDER / "execute.py"), arguments.home, notebook]).returncode
        if code == NO_SWEEP:
            print(
                f"{name}: notebook {notebook} was not executed: it reads a sweep that has not been run yet", flush=True
            )
        elif code:
            print(f"{name}: notebook {notebook} failed", flush=True)
            failed.append(notebook)
    rows = planned(result, arguments)
    record: dict[str, Any] = {
        "result": name,
        "command": shlex.join(["dsd-lab", *sweep[len(_program()) :]]),
        "seeds": sorted({row["seed"] for row in rows}),
        "trials": {state: sum(r["status"] == state for r in rows) for state in sorted({r["status"] for r in rows})},
        **made_by(Home(Path(arguments.home)), [row["id"] for row in rows]),
        "reported_by": provenance(),
        "this_run": {
            "estimated_training_seconds": seconds,
            "seconds": round(time.time() - began, 1),
            "ended": time.strftime("%Y-%m-%d %H:%M"),
        },
        "failed_notebooks": failed,
    }
    write_json(out / "result.json", record)
    print(f"{name}: {out / 'report.html'}, {out / 'result.json'}", flush=True)
    return failed


def keep_records(name: str, key: str, out: Path, home: str) -> None:
    """Write the records of a sweep's trials beside its report, and keep them in the repository if they are small."""
    written, kept = out / "records.tar.xz", RECORDS / f"{name}.tar.xz"
    with tempfile.TemporaryDirectory(dir=out) as folder:
        exported, packed = Path(folder) / "export", Path(folder) / "packed"
        left_out = ("--anonymous", "--no-pictures")
        _run([*_program(), "export", key, "--home", home, "--out", str(exported), *left_out])
        with tarfile.open(packed, "w:xz", preset=9) as archive:
            archive.add(exported, name, filter=_without_owner)
        packed.replace(written)
    if written.stat().st_size <= LARGEST:
        RECORDS.mkdir(exist_ok=True)
        shutil.copyfile(written, kept)
    else:
        kept.unlink(missing_ok=True)  # of an earlier run
        print(f"{name}: its records are not kept in {RECORDS}: {written} has over {readable(LARGEST)}", flush=True)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def import_records(name: str, arguments: argparse.Namespace) -> None:
    """Add the kept trials of a result to the home folder."""
    places = (RECORDS / f"{name}.tar.xz", Path(arguments.out) / name / "records.tar.xz")
    path = next((place for place in places if place.exists()), None)
    if path is None:
        sys.exit(f"no records of {name} in {places[0]} or {places[1]}; make it without --from-records")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        _run([*_program(), "import", str(Path(folder) / name), "--home", arguments.home])


def made_by(home: Home, ids: list[str]) -> dict[str, Any]:
    """What trained the trials, from their own records: provenance with the number of trials, and training time over all runs."""
    counted: dict[str, int] = {}
    seconds = 0.0
    for trial in ids:
        folder = home.trial(trial)
        record = folder.description()
        if record is None:
            continue
        seconds += folder.status().seconds
        kept = record.provenance.model_dump(mode="json", exclude={"command", "device", "plugins"})
        text = json.dumps(kept | {"code": folder.status().code}, sort_keys=True)
        counted[text] = counted.get(text, 0) + 1
    return {
        "trained_by": [json.loads(text) | {"trials": count} for text, count in counted.items()],
        "trial_seconds": round(seconds, 1),
    }


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
    parser.add_argument(
        "--from-records", action="store_true", help="train nothing: import the trials from their records"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override, as of dsd-lab sweep, such as base.data.path=DIR")  # fmt: skip
    sys.exit(main(parser.parse_args()))
