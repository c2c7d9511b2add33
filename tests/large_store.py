"""A home folder of many invented trials, and how long and how much memory a report on it takes.

    python tests/large_store.py HOME --trials 1000
    python tests/large_store.py HOME --time

The first makes spools as trials write them and has the store replay them (6 million metrics of 1,000
trials take minutes); the second reports on them in a process of its own and says what that took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlflow.entities import Metric
from PIL import Image

from dsd_lab.files.atomic import write_json
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.provenance import provenance
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.store.mlflow_store import Store
from dsd_lab.training_code import training_code

TRAINING = ("train/loss", "train/reconstruction", "train/diffusion", "train/gradient_norm", "train/learning_rate")
PROBED = (
    "latent/variance",
    "latent/effective_rank/token",
    "latent/effective_rank/image",
    "latent/capacity_bits/token",
    "latent/probe_images",
    *(f"rank_gap/t{i}" for i in range(5)),
    *(f"latent/{name}" for name in ("spatial_variance", "total_variation", "rankme/image", "uniformity/image")),
    *(f"latent/{name}/{level}" for name in ("spectral_rank", "participation_ratio", "stable_rank") for level in ("token", "image")),
    *(f"latent/{name}/pre" for name in ("variance", "effective_rank/token", "effective_rank/image", "capacity_bits/token", "uniformity/image")),
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "control": {"diffusion_weight": 0.0},
    "naive": {"target": "live", "output": "velocity", "loss_space": "velocity"},
    "decoupled": {"target": "stop_gradient", "output": "velocity", "loss_space": "velocity"},
    "clean_joint": {"target": "live", "output": "clean", "loss_space": "clean"},
    "dsd": {"target": "ema", "output": "clean", "loss_space": "clean"},
}
METRICS = len(TRAINING) + len(PROBED)
"""At each recorded step."""


def make_large(home: Home, trials: int, steps: int) -> dict[str, Any]:
    """Write the spools of a sweep of about `trials` trials and bring the store up to them; returns its manifest.

    Five variants at up to ten grid points, seeds for the rest; `steps` records of `METRICS` metrics each.
    """
    points = min(10, max(1, trials // 50))
    spec = {
        "name": "large",
        "why": "How long does a report take?",
        "base": {"training": {"steps": steps}},
        "variants": {name: {"objective": objective} for name, objective in VARIANTS.items()},
        "grid": {"optimiser.lr": [float(f"{1e-4 * (i + 1):g}") for i in range(points)]},
        "seeds": list(range(-(-trials // (points * len(VARIANTS))))),
    }
    home.prepare()
    path = home.root / "large.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    plan = load_sweep(path)
    manifest = manifest_of(plan)
    home.write_manifest(manifest)
    origin = provenance() | {"device": "cpu"}
    for trial in plan.trials:
        _write_trial(home, trial, steps, origin)
    store = Store(home)
    with contextlib.closing(sqlite3.connect(home.root / "mlflow.db")) as database:
        store.client.log_batch = _straight(store.client.log_batch, database)
        store.sync(manifest)
    return manifest


def _straight(log_batch: Callable[..., None], database: sqlite3.Connection) -> Callable[..., None]:
    """MLflow's `log_batch` with the metrics written past it: the same rows, in minutes instead of an hour."""

    def write(run: str, metrics: Sequence[Metric] = (), params: Any = (), tags: Any = ()) -> None:
        rows = [(m.key, m.value, m.timestamp, run, m.step, 0) for m in metrics]
        latest = list({row[0]: row for row in rows}.values())
        columns = "(key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)"
        database.executemany(f"insert into metrics {columns}", rows)
        database.executemany(f"insert or replace into latest_metrics {columns}", latest)
        database.commit()
        log_batch(run, params=params, tags=tags)

    return write


def _write_trial(home: Home, trial: PlannedTrial, steps: int, origin: dict[str, Any]) -> None:
    folder, random = home.trial(trial.id), np.random.default_rng(trial.seed)
    folder.images.mkdir(parents=True)
    shrunk = trial.variant in ("naive", "decoupled", "clean_joint")
    size = np.linspace(1.0, 0.03 if shrunk else 1.0, steps)[:, None] * random.lognormal(0, 0.02, (steps, METRICS))
    size[:, len(TRAINING) + 1] *= 6
    size[:, len(TRAINING) + 2] *= 20
    size[:, len(TRAINING) + 3] *= 3
    size[:, len(TRAINING) + 4] = 256
    spectrum = np.geomspace(1, 0.01, 32)
    common = {"width": trial.fields.network.width}
    lines = []
    for step, values in enumerate(size.tolist(), 1):
        for kind, names, found in (
            ("train", TRAINING, values[: len(TRAINING)]),
            ("probe", PROBED, values[len(TRAINING) :]),
        ):
            entry: dict[str, Any] = {"n": len(lines), "time": 1.7e9 + step, "step": step, "kind": kind}
            entry |= {"metrics": dict(zip(names, found, strict=True)), "seconds": 0.5}
            if kind == "probe":
                spectra = {"token": spectrum[:8], "image": spectrum}
                entry["spectra"] = {name: (found[0] * values).tolist() for name, values in spectra.items()}
            lines.append(json.dumps(entry))
    Image.fromarray(random.integers(0, 255, (68, 332), np.uint8)).save(
        folder.images / f"reconstruction-{steps:09d}.png"
    )
    lines.append(
        json.dumps({"n": len(lines), "time": 1.8e9, "step": steps, "kind": "finished", "images_seen": 64 * steps})
    )
    folder.spool.write_text("\n".join(lines) + "\n")
    described = {"id": trial.id, "variant": trial.variant, "point": trial.point, "seed": trial.seed, "name": trial.name}
    described |= {
        "fields": trial.fields.model_dump(),
        "canonical": canonical_fields(trial.fields),
        "provenance": origin,
    }
    described |= {"overrides": trial.overrides, "size": trial.fields.network.size}
    described["data"] = {"name": "digits", "fingerprint": "f" * 64, "train": 1402, "holdout": 395, "classes": 10}
    write_json(folder.root / "trial.json", described)
    write_json(folder.root / "parameters.json", {"parameters": 1000 * int(common["width"] or 1)})
    state = {"state": "done", "step": steps, "steps": steps, "attempt": 1, "error": None, "code": training_code()}
    folder.write_status(**state, started=1.7e9, updated=1.7e9 + steps, seconds=float(steps))


def main() -> None:
    """Make a home, or time a report on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--time", action="store_true", help="report on it instead of making it")
    arguments = parser.parse_args()
    began = time.monotonic()
    if not arguments.time:
        made = make_large(Home(arguments.home), arguments.trials, arguments.steps)
        print(
            f"{len(made['trials'])} trials of {arguments.steps} x {METRICS} metrics: {time.monotonic() - began:.1f} s"
        )
        return
    subprocess.run([sys.executable, "-m", "dsd_lab", "report", "--home", str(arguments.home)], check=True)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - began:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, at most {memory:.0f} MiB")


if __name__ == "__main__":
    main()
