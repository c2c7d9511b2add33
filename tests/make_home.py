"""Make a small home folder as this version writes it: `python tests/make_home.py tests/fixtures/home-schema1`.

A version that changes a file below a home folder keeps the folders of the earlier ones, and adds its own under its
number. The folder holds a finished, a diverged, a failed and an interrupted trial, an evaluation, and the record of
their sweep; MLflow's database is left out, since it is replayed from the spools.
"""

import json
import shutil
import sys
from pathlib import Path

from sweeping import EVALUATION, VARIANTS, write_spec

from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.loading import load_sweep

SMALL = {
    "network": {"width": 8, "heads": 1},
    "observation": {"checkpoints_kept": 1, "images": 2, "images_every": 12},
    "data": {"source": "digits"},
}


def make(folder: Path) -> None:
    """Write `folder/home` and `folder/spec.yaml`."""
    variants = {k: VARIANTS[k] for k in ("dsd", "naive", "wild", "broken")}
    spec = write_spec(folder, variants, base=SMALL, evaluate=[EVALUATION], name="old")
    plan, home = load_sweep(spec), Home(folder / "home")
    home.prepare()
    home.write_manifest(manifest_of(plan).changed(spec_path="spec.yaml"))
    for trial in plan.trials:
        progress = run_trial(home, trial, plan.spec.evaluate, DataShelf())
        for _ in progress:
            saved = list_checkpoints(home.trial(trial.id).checkpoints)
            if trial.variant == "naive" and saved and saved[0].name == "step-000000008":
                progress.close()  # interrupted
                break
    for path in home.root.glob("trials/*/*.json"):
        text = json.loads(path.read_text())
        if "provenance" in text:
            text["provenance"] |= {
                "git_commit": None,
                "git_dirty": False,
                "machine": {"host": "a", "system": "Linux", "processor": "a"},
            }
            text["fields"]["data"]["path"] = None
        path.write_text(json.dumps(text, indent=1).replace(str(folder.resolve()), ".") + "\n")
    for path in home.root.glob("trials/*/error.txt"):
        path.unlink()  # tracebacks name files of the machine
    for path in (home.cache, *home.root.glob("trials/*/crash")):
        shutil.rmtree(path)  # caches are made again, and nothing reads a crash


if __name__ == "__main__":
    make(Path(sys.argv[1]))
