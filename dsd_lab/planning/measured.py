"""Measurements of this machine, stored in the home folder for `dsd-lab plan` and read without torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from dsd_lab.home.home import Home
from dsd_lab.home.measurement_records import Benchmarks, Ceilings, Events, Figure
from dsd_lab.home.record_types import FORMAT
from dsd_lab.planning.estimates import shape_key
from dsd_lab.provenance import processor
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.trial import Trial

EVENTS = tuple(Events.model_fields)
"""What a trial does between steps: means of losses, latent metrics, image grids, checkpoints."""


def cpu_name() -> str:
    """Name of the processor and its number of logical CPUs."""
    return f"{processor()} x{os.cpu_count()}"


def event_counts(trial: Trial) -> dict[str, int]:
    """Number of each of `EVENTS` in a whole trial. Each happens at the end, probes also at the start."""
    steps, watch = trial.training.steps, trial.observation
    everies = {"record": watch.log_every, "images": watch.images_every, "checkpoint": watch.checkpoint_every}
    counts = {name: 1 + (steps - 1) // every for name, every in everies.items()}
    return counts | {"probe": 2 + (steps - 1) // trial.probe.every}


def whole_seconds(trial: Trial, step: float, events: Events) -> float:
    """Seconds of a whole trial from seconds per step and per event."""
    counts, seconds = event_counts(trial), dict(events)
    return step * trial.training.steps + sum(counts[name] * float(seconds[name]) for name in EVENTS)


def remember_figure(home: Home, trial: Trial, device: str, figure: Figure) -> None:
    """Store the measurement of a trial's shape; replaces an earlier one."""
    path, key = _path(home), _key(trial)
    known = Benchmarks.known(path) or Benchmarks(format=FORMAT)
    path.parent.mkdir(parents=True, exist_ok=True)
    known.changed(**{key: known.figures.get(key, {}) | {device: figure}}).write(path)


def benched_seconds(home: Home, trial: Trial, gpu: str) -> tuple[float, str] | None:
    """Seconds of a whole trial from the stored measurement of its shape, and the device; None where there is none.

    Args:
        home: whose cache is read.
        trial: a CPU trial uses only measurements of this machine's processor.
        gpu: planned GPU (a key of `dsd_lab.planning.gpus.GPUS`) of trials that use one.
    """
    share = min(1.0, trial.resources.gpus)
    for device, figure in _figures(home, trial, gpu):
        return whole_seconds(trial, figure.step, figure.events) / (share or 1.0), device
    return None


def benched_efficiency(home: Home, trial: Trial, gpu: str) -> float | None:
    """Speed of the trial's processes together over their number times that of one, as `bench` found; None where it has not.

    Args:
        home: whose cache is read.
        trial: with its resources.
        gpu: as in `benched_seconds`.
    """
    found = (figure.efficiency.get(str(trial.resources.team)) for _, figure in _figures(home, trial, gpu))
    return next((efficiency for efficiency in found if efficiency is not None), None)


def _figures(home: Home, trial: Trial, gpu: str) -> Iterator[tuple[str, Figure]]:
    """Devices that count for a trial, and what was measured of its shape on them."""
    known = Benchmarks.known(_path(home)) or Benchmarks()
    for device, figure in known.figures.get(_key(trial), {}).items():
        if is_gpu(device, gpu) if trial.resources.gpus else device == cpu_name():
            yield device, figure


def machine_ceiling(home: Home, threads: int) -> float:
    """FLOP/s of this machine's float32 matrix products with `threads` threads, measured once per home folder."""
    path, key = home.cache / "ceilings.json", f"{cpu_name()}, {threads} threads"
    known = Ceilings.known(path) or Ceilings(format=FORMAT)
    if key not in known.flops_per_second:
        known = known.changed(**{key: matrix_ceiling(threads)})
        if home.root.is_dir():
            home.cache.mkdir(exist_ok=True)
            known.write(path)
    return known.flops_per_second[key]


def matrix_ceiling(threads: int) -> float:
    """FLOP/s of NumPy's float32 matrix products, measured as FLOPs per CPU second, times `threads`.

    Args:
        threads: of the trial.
    """
    import numpy as np  # takes 0.1 s, so only if a measurement is needed

    a, b = (np.random.default_rng(0).random((512, 512), dtype=np.float32) for _ in range(2))
    a @ b
    fastest = 0.0
    for _ in range(20):
        began, count = (
            time.process_time(),
            0,
        )  # CPU time of all threads
        while time.process_time() - began < 0.005:
            a @ b
            count += 1
        fastest = max(fastest, count * 2 * 512**3 / (time.process_time() - began))
    return threads * fastest


def is_gpu(device: str, name: str) -> bool:
    """Whether a driver's GPU name (`NVIDIA GeForce RTX 4090`) matches a name of ours (`rtx4090`)."""
    words = device.lower().replace("-", " ").split()
    return name in {*words, *(a + b for a, b in pairwise(words))}


def _key(trial: Trial) -> str:
    return json.dumps([shape_key(canonical_fields(trial)), trial.resources.threads])


def _path(home: Home) -> Path:
    return home.cache / "benchmarks.json"
