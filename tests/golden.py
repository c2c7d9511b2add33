"""Golden losses: what a few steps of every objective give on the CPU, kept in `tests/golden/*.json`.

    python tests/golden.py compare            # "equal", or the first step of each run that differs
    python tests/golden.py compare --exact    # to the last bit: for a change on one machine that must change no number
    python tests/golden.py write              # after a change that is meant to change numbers

Runs are of a tiny network on scikit-learn's digits, seed 0, one thread, in float32 and bfloat16. On one
machine, with one version of torch, they give the same numbers bit for bit. Other CPUs add in another
order and round bfloat16 products elsewhere: there, numbers are equal if their relative difference is
at most 1e-4 in float32, and 3e-2 in bfloat16, whose numbers have 8 bits. A number below 0.1 in size, such
as a mean cosine near 0, is the small rest of large ones and is compared as if it were 0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dsd_lab.core.data import DataSet, load_data
from dsd_lab.core.training.events import Logged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.trial import Trial

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative difference between machines, by precision."""
_SMALL = 0.1
BASE: dict[str, dict[str, Any]] = {
    "network": {"width": 32, "heads": 2, "encode_blocks": 1, "denoise_blocks": 1, "decode_blocks": 1},
    "time": {"distribution": "logit_normal"},
    "training": {"steps": 8, "batch_size": 16},
    "optimiser": {"warmup_steps": 2},
    "probe": {"every": 100, "images": 16, "gradient_images": 0, "scale_images": 0},
    "observation": {"log_every": 1, "images": 1},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "naive": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "decoupled": {"objective": {"target": "stop_gradient", "output": "velocity", "loss_space": "velocity"}},
    "clean_joint": {"objective": {"target": "live", "output": "clean", "loss_space": "clean"}},
    "dsd_online": {"objective": {"target": "stop_gradient", "output": "clean", "loss_space": "clean"}},
    "dsd": {"objective": {"target": "ema", "output": "clean", "loss_space": "clean"}},
    "detached": {
        "objective": {"target": "stop_gradient", "noised": "detached", "output": "clean", "loss_space": "clean"}
    },
    "auxiliaries": {
        "latent": {"decoder_noise": 0.2},
        "augmentation": {"flip": 0.5, "mask": 0.25},
        "auxiliary": {"alignment": 0.5, "representation": 0.2, "classification": 0.1, "head_width": 16},
    },
    "muon": {"optimiser": {"kind": "muon"}},
}
Steps = list[dict[str, float]]
"""The loss, its terms and the gradient's norm by name, one entry a step."""


def trial_of(objective: str, precision: str, changes: dict[str, dict[str, Any]] | None = None) -> Trial:
    """The trial of a run, with changes on top, section by section."""
    sections: dict[str, dict[str, Any]] = {}
    for layer in (BASE, OBJECTIVES[objective], {"training": {"precision": precision}}, changes or {}):
        for name, values in layer.items():
            sections[name] = sections.get(name, {}) | values
    return Trial.model_validate(sections)


def steps_of(trial: Trial, data: DataSet) -> Steps:
    """Train it, and tell what every step gave."""
    torch.set_num_threads(1)
    events = Trainer(trial, 0, data, torch.device("cpu")).run()
    logged = [event.metrics for event in events if isinstance(event, Logged)]
    told = [{name.removeprefix("train/"): value for name, value in metrics.items()} for metrics in logged]
    # Whether a norm near the limit was clipped is not the same on every machine.
    left_out = ("learning_rate", "clipped/")
    return [{name: value for name, value in step.items() if not name.startswith(left_out)} for step in told]


def path_of(objective: str, precision: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{objective}-{precision}.json"


def difference(golden: Steps, now: Steps, tolerance: float) -> str | None:
    """The first step at which two runs differ, in words; None where they are equal.

    Args:
        golden: what the file has.
        now: what was found.
        tolerance: largest relative difference of two numbers that are taken for equal; 0: none at all.
    """
    for step, (before, after) in enumerate(zip(golden, now, strict=False), 1):
        for name in dict.fromkeys([*before, *after]):
            if name not in before or name not in after:
                return f"step {step}: {name} is only in {'the run' if name in after else 'the file'}"
            apart = abs(after[name] - before[name]) / max(abs(before[name]), _SMALL)
            if not apart <= tolerance:  # NaN differs too
                return (
                    f"step {step}: {name} is {after[name]!r}, golden {before[name]!r}, relative difference {apart:.2e}"
                )
    return None if len(golden) == len(now) else f"{len(now)} steps, golden {len(golden)}"


def compare(runs: Iterable[tuple[str, str]], data: DataSet, exact: bool = False) -> list[str]:
    """A line for each run that differs from its file."""
    lines = []
    for objective, precision in runs:
        golden = json.loads(path_of(objective, precision).read_text())["steps"]
        found = difference(golden, steps_of(trial_of(objective, precision), data), 0 if exact else TOLERANCE[precision])
        if found is not None:
            lines.append(f"{objective} {precision}: {found}")
    return lines


def write(runs: Iterable[tuple[str, str]], data: DataSet) -> None:
    """Make the files anew."""
    FOLDER.mkdir(exist_ok=True)
    for objective, precision in runs:
        trial = trial_of(objective, precision)
        content = {"objective": objective, "precision": precision, "steps": steps_of(trial, data)}
        path_of(objective, precision).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Compare or write; 1 where something differs."""
    parser = argparse.ArgumentParser(description="Golden losses of every objective.")
    parser.add_argument("action", choices=("compare", "write"))
    parser.add_argument("--exact", action="store_true", help="compare to the last bit")
    parser.add_argument("--only", action="append", choices=tuple(OBJECTIVES), help="only this objective; repeatable")
    arguments = parser.parse_args(argv)
    runs = [(objective, precision) for objective in arguments.only or OBJECTIVES for precision in TOLERANCE]
    data = load_data(Trial().data)
    if arguments.action == "write":
        write(runs, data)
        print(f"{len(runs)} files in {FOLDER}")
        return 0
    lines = compare(runs, data, arguments.exact)
    print("\n".join(lines) or "equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
