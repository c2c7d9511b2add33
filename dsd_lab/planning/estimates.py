"""Estimate parameters by role, training FLOPs, memory and time of a trial without training it.

Counts come from formulas (`dsd_lab.planning.formulas`) or, for trials that these do not cover, from the training code
(`dsd_lab.planning.flops`), cached in the home folder. Time is FLOPs over this machine's peak of matrix products times
an assumed MFU, until a trial of the same shape has been timed in the home folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dsd_lab.files.cache import Cache
from dsd_lab.home.data_facts import known_facts
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry
from dsd_lab.home.trial_records import Status
from dsd_lab.planning.formulas import bytes_by_formula, shape_by_formula
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.training import Training
from dsd_lab.specs.trial import Trial

ASSUMED_MFU = 0.25
"""Assumed MFU (our choice); measured step times replace it."""
_CLASSES = 1000
Counted = TypeVar("Counted")

_PARALLEL_EFFICIENCY = 0.9
"""Assumed efficiency of data-parallel training: N processes reach this share of N times the images per second of one.
Not measured on GPUs."""


@dataclass(frozen=True)
class Shape:
    """Counts that depend on the network and the objective, not on the values of the data."""

    params: dict[str, int]
    """Trained parameters of the deployed network by role, without copies (target, EMA)."""
    copies: dict[str, int]
    """Parameters of copies: the EMA and, if any, the EMA target encoder."""
    moments: int
    """Numbers in the optimiser's state: two per parameter with AdamW, one with Muon."""
    flops_per_image: int
    """Forward and backward FLOPs of a training step per image, over all passes of the variant."""
    role_flops: dict[str, int]
    """Forward FLOPs of each role per image."""
    stage_flops: Sequence[int] = ()
    """`flops_per_image` per training stage; earlier counts have only the mean."""
    auxiliary: int = 0
    """Trained parameters of auxiliary heads, which are not deployed."""
    frozen: int = 0
    """Parameters of the timm models of perceptual losses."""

    def flops_until(self, trial: Trial, step: int) -> float:
        """Training FLOPs of the first `step` steps of a trial of this shape."""
        stages = trial.stages()
        each = self.stage_flops if len(self.stage_flops) == len(stages) else [self.flops_per_image] * len(stages)
        ends = [*(stage.start for stage in stages[1:]), trial.training.steps]
        steps = [max(0, min(step, end) - stage.start) for stage, end in zip(stages, ends, strict=True)]
        return float(trial.training.batch_size * sum(n * flops for n, flops in zip(steps, each, strict=True)))

    def memory(self, training: Training, bytes_per_image: int) -> int:
        """Peak bytes of tensors in a step, within 15 % of CPU measurements.

        The sum of parameters, moments and copies in float32, and the larger of two parts: activations (`cached_bytes`
        per image, bfloat16 weights, gradients of earlier parts of the batch), which exist first, and gradients.
        """
        trained = self.params["total"] + self.auxiliary
        weights = trained + self.moments + sum(self.copies.values()) + self.frozen
        passes = training.batch_size // training.grad_accum_steps * bytes_per_image
        passes += 2 * trained * (training.precision == "bf16") + 4 * trained * (training.grad_accum_steps > 1)
        return 4 * weights + max(passes, 4 * trained)


def cached_shape(trial: Trial, home: Home, code: str) -> Shape:
    """`count_shape`, by formula where possible, else cached in the home folder by fields and training code."""
    fields = canonical_fields(trial)

    if (found := shape_by_formula(trial, *_images_of(home, trial))) is not None:
        return Shape(**found)

    def count(channels: int, classes: int) -> Shape:
        from dsd_lab.planning.flops import count_shape  # imports torch: only if something is counted

        return Shape(**count_shape(trial, channels, classes))

    return _cached(home, trial, Shape, [code, *_shape_fields(fields), fields["optimiser"]["kind"]], count)


def cached_bytes(trial: Trial, home: Home, code: str) -> int:
    """`count_bytes`, by formula where possible, else cached as in `cached_shape`."""
    if (found := bytes_by_formula(trial, *_images_of(home, trial))) is not None:
        return found
    fields = canonical_fields(trial)

    def count(channels: int, classes: int) -> int:
        from dsd_lab.planning.flops import count_bytes

        return count_bytes(trial, channels, classes)

    kind = ["bytes", trial.training.precision, trial.resources.gpus > 0]
    return _cached(home, trial, int, [code, *_shape_fields(fields), *kind], count)


def _cached(
    home: Home, trial: Trial, kind: type[Counted], parts: list[Any], count: Callable[[int, int], Counted]
) -> Counted:
    """A count for a dataset's channels and classes, from the cache if possible."""
    channels, classes = _images_of(home, trial)
    key = json.dumps([*parts, channels, classes], sort_keys=True)
    known: Cache[Counted] = Cache(home.cache / "shapes.json", kind)
    return known.once(key, lambda: count(channels, classes), keep=home.root.is_dir())


def _images_of(home: Home, trial: Trial) -> tuple[int, int]:
    """Channels and classes of a trial's images; defaults where they were not read yet."""
    facts = known_facts(home, trial.data)
    if facts is not None:
        return facts.shape[0], facts.classes
    return (1, 10) if trial.data.source in ("digits", "idx") else (3, _CLASSES)


def timed_seconds(home: Home, entries: list[Entry]) -> dict[str, float]:
    """Seconds per step by canonical shape, from trials that were trained in this home folder."""
    found: dict[str, float] = {}
    for entry in entries:
        status = home.trial(entry.id).status()
        if status.state == "done" and status.seconds and status.own_steps:
            # Normalised to a single process.
            found[shape_key(entry.canonical)] = speedup(_processes(status)) * status.seconds / status.own_steps
    return found


def speedup(processes: int, efficiency: float | None = None) -> float:
    """Speed-up of several processes over one, by a measured or an assumed efficiency."""
    return 1.0 if processes == 1 else (efficiency or _PARALLEL_EFFICIENCY) * processes


def _processes(status: Status) -> int:
    """Number of processes of the last attempt, from a device such as `2 x NVIDIA H100`."""
    count, times, _ = (status.trained_on[-1].device if status.trained_on else "").partition(" x ")
    return int(count) if times and count.isdecimal() else 1


def shape_key(canonical: dict[str, Any]) -> str:
    """Key of everything that the time per step depends on."""
    training = {k: canonical["training"].get(k) for k in ("batch_size", "precision", "grad_accum_steps")}
    training |= {"compile": True} if canonical["training"].get("compile") else {}
    return json.dumps([*_shape_fields(canonical), training, canonical["optimiser"].get("kind")], sort_keys=True)


def _shape_fields(canonical: dict[str, Any]) -> list[Any]:
    """The fields that decide what a step computes."""
    training = canonical["training"]
    phases = training.get("phases") or []
    rest = {
        "phases": phases,
        "noise_draws": training.get("noise_draws"),
        "extra_ema_decays": training.get("extra_ema_decays"),
    }
    rest |= {"activation_checkpointing": True} if training.get("activation_checkpointing") else {}
    steps = training["steps"] if phases else None  # as shares of the steps
    sections = (canonical.get(k) for k in ("network", "latent", "objective", "auxiliary"))
    plugins = [canonical["plugins"]] if canonical.get("plugins") else []
    return [*sections, *plugins, (canonical.get("augmentation") or {}).get("mask"), rest, steps]
