"""What it costs that a trial survives a power cut: the time in `fsync` of whole trials, as a share of theirs.

    python tests/benchmarks/durability.py experiments/collapse_ablation.yaml --variant dsd --trials 3

Everything that is flushed is counted: records, pictures, checkpoints, statuses, `trial.json`. The share may be 0.5 % at most.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.home.home import Home
from dsd_lab.home.spool import read_spool
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.specs.loading import load_sweep

MOST = 0.005
"""Share of a trial's time."""


class Flushes:
    """Counts and times every `os.fsync` of this process while its `with` block lasts."""

    def __enter__(self) -> "Flushes":
        self.seconds: list[float] = []
        self._fsync = os.fsync
        os.fsync = self._timed  # type: ignore[assignment]  # stands in for it, whatever it is given
        return self

    def __exit__(self, *fault: object) -> None:
        os.fsync = self._fsync

    def _timed(self, handle: Any) -> None:
        began = time.perf_counter()
        self._fsync(handle)
        self.seconds.append(time.perf_counter() - began)


def measure(spec: Path, sets: list[str], variant: str, trials: int, folder: Path) -> dict[str, Any]:
    """Run trials of a variant, each in a home of its own; returns figures.

    Args:
        spec: file of a sweep.
        sets: overrides as of `--set`.
        variant: whose first seed is trained.
        trials: how many.
        folder: on the disk that is meant.
    """
    torch.set_num_threads(1)
    planned = next(t for t in load_sweep(spec, sets=sets).trials if t.variant == variant)
    shelf, shares, found = DataShelf(), [], {}
    for number in range(trials):
        home = Home(folder / f"home{number}")
        home.prepare()
        began, worked = time.perf_counter(), time.process_time()
        with Flushes() as flushes:
            for _ in run_trial(home, planned, [], shelf):
                pass
        took, worked = time.perf_counter() - began, time.process_time() - worked
        assert list_checkpoints(home.trial(planned.id).checkpoints), home.trial(planned.id).status()
        checkpoints = sum(line.kind == "checkpoint" for line in read_spool(home.trial(planned.id).spool))
        shares.append(sum(flushes.seconds) / took)  # both by the clock: a busy machine makes both longer
        found = {
            "trial_seconds": round(took, 2),
            "processor_seconds": round(worked, 2),
            "checkpoints": checkpoints,
            "flushes": len(flushes.seconds),
            "median_flush_ms": round(1e3 * statistics.median(flushes.seconds), 3),
            "flushing_seconds": round(sum(flushes.seconds), 4),
        }
    shown = {"share": round(statistics.median(shares), 5), "shares": [round(share, 5) for share in shares]}
    return {"trial": planned.name, "load": round(os.getloadavg()[0], 1), **shown, "last": found}


def main() -> int:
    parser = argparse.ArgumentParser(description="The cost of durability.")
    parser.add_argument("spec", type=Path)
    parser.add_argument("--variant", default="dsd")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--folder", help="a folder of the disk that is meant (default: that of temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="durability-", dir=arguments.folder) as folder:
        figures = measure(arguments.spec, arguments.set, arguments.variant, arguments.trials, Path(folder))
    print(json.dumps(figures | {"limit": MOST, "met": figures["share"] <= MOST}, indent=1))
    return 0 if figures["share"] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
