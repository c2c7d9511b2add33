"""What a trial will need: parameters by role, training FLOPs, memory and time, without training it.

The counts come from formulas (`dsd_lab.planning.formulas`); what these do not cover is counted by the code that
trains (`dsd_lab.planning.flops`) and remembered in the home folder. The time is FLOPs over what this machine's matrix products reach, times a stated efficiency,
until a trial of the same shape has been timed in the home folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsd_lab.files.atomic import read_cache, write_json
from dsd_lab.home.data_facts import known_facts
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry
from dsd_lab.home.trial_records import Status
from dsd_lab.planning.formulas import bytes_by_formula, shape_by_formula
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.training import Training
from dsd_lab.specs.trial import Trial

EFFICIENCY = 0.25
"""Share of the matrix-product ceiling that a training step is taken to reach (ours; measured steps replace it)."""
_CLASSES = 1000


_SHARED = 0.9
"""Share of N times one process' images a second that N processes are taken to reach; not measured on GPUs."""


@dataclass(frozen=True)
class Shape:
    """Counts that depend on the network and the objective, not on the data's values."""

    params: dict[str, int]
    """Trained weights of the deployed network by role; copies (target, average) are not in it."""
    copies: dict[str, int]
    """Weights kept beside them: the EMA average and, where there is one, the EMA target encoder."""
    moments: int
    """Numbers that the optimiser keeps: two a weight under AdamW, one for each that Muon moves."""
    flops_per_image: int
    """Forward and backward FLOPs of a training step for one image, all passes that the variant makes."""
    role_flops: dict[str, int]
    """FLOPs of one forward pass of each role for one image."""
    stage_flops: Sequence[int] = ()
    """`flops_per_image` of every stage of training; earlier counts have the mean alone."""
    auxiliary: int = 0
    """Trained weights of the auxiliary losses' heads, which are no part of the deployed network."""
    frozen: int = 0
    """Weights of the timm models that losses compare with."""

    def flops_until(self, trial: Trial, step: int) -> float:
        """Training FLOPs of the first steps of a trial of this shape."""
        stages = trial.stages()
        each = self.stage_flops if len(self.stage_flops) == len(stages) else [self.flops_per_image] * len(stages)
        ends = [*(stage.start for stage in stages[1:]), trial.training.steps]
        steps = [max(0, min(step, end) - stage.start) for stage, end in zip(stages, ends, strict=True)]
        return float(trial.training.batch_size * sum(n * flops for n, flops in zip(steps, each, strict=True)))

    def memory(self, training: Training, bytes_per_image: int) -> int:
        """Bytes that tensors hold at most in a step, within 15 % of what was measured on the CPU.

        Weights, moments and copies in float32, and beside them the larger of what forward and backward hold
        (`cached_bytes` an image, weights in bfloat16, gradients of earlier parts of the batch), which are there
        first, and gradients.
        """
        trained = self.params["total"] + self.auxiliary
        weights = trained + self.moments + sum(self.copies.values()) + self.frozen
        passes = training.batch_size // training.grad_accum_steps * bytes_per_image
        passes += 2 * trained * (training.precision == "bf16") + 4 * trained * (training.grad_accum_steps > 1)
        return 4 * weights + max(passes, 4 * trained)


def cached_shape(trial: Trial, home: Home, code: str) -> Shape:
    """`count_shape`, by formula where there is one, else remembered in the home folder's cache (keyed by fields and training code)."""
    fields = canonical_fields(trial)

    if (found := shape_by_formula(trial, *_images_of(home, trial))) is not None:
        return Shape(**found)

    def count(channels: int, classes: int) -> dict[str, Any]:
        from dsd_lab.planning.flops import count_shape  # imports torch: only where something is counted

        return count_shape(trial, channels, classes)

    return Shape(**_cached(home, trial, [code, *_shape_fields(fields), fields["optimiser"]["kind"]], count))


def cached_bytes(trial: Trial, home: Home, code: str) -> int:
    """`count_bytes`, by formula or remembered as `cached_shape` is."""
    if (found := bytes_by_formula(trial, *_images_of(home, trial))) is not None:
        return found
    fields = canonical_fields(trial)

    def count(channels: int, classes: int) -> int:
        from dsd_lab.planning.flops import count_bytes

        return count_bytes(trial, channels, classes)

    kind = ["bytes", trial.training.precision, trial.resources.gpus > 0]
    return int(_cached(home, trial, [code, *_shape_fields(fields), *kind], count))


def _cached(home: Home, trial: Trial, parts: list[Any], count: Callable[[int, int], Any]) -> Any:
    """What was counted for a data set's channels and classes."""
    channels, classes = _images_of(home, trial)
    key = json.dumps([*parts, channels, classes], sort_keys=True)
    path = home.cache / "shapes.json"
    known = read_cache(path)
    if key not in known:
        known[key] = count(channels, classes)
        if home.root.is_dir():
            home.cache.mkdir(exist_ok=True)
            write_json(path, known)
    return known[key]


def _images_of(home: Home, trial: Trial) -> tuple[int, int]:
    """Channels and classes of a trial's images; where they were not read yet, those of the usual sets."""
    facts = known_facts(home, trial.data)
    if facts is not None:
        return facts["shape"][0], facts["classes"]
    return (1, 10) if trial.data.source in ("digits", "idx") else (3, _CLASSES)


def timed_seconds(home: Home, entries: list[Entry]) -> dict[str, float]:
    """Seconds a step by canonical shape, from trials that have been trained in this home folder."""
    found: dict[str, float] = {}
    for entry in entries:
        status = home.trial(entry.id).status()
        if status.state == "done" and status.seconds and status.own_steps:
            # As one process would take, whatever number trained it last.
            found[shape_key(entry.canonical)] = speedup(_processes(status)) * status.seconds / status.own_steps
    return found


def speedup(processes: int, efficiency: float | None = None) -> float:
    """How many times as fast as one process several are: by a measured efficiency, or by an assumed one (0.9)."""
    return 1.0 if processes == 1 else (efficiency or _SHARED) * processes


def _processes(status: Status) -> int:
    """Of the last attempt: `2 x NVIDIA H100`."""
    count, times, _ = (status.trained_on[-1].device if status.trained_on else "").partition(" x ")
    return int(count) if times and count.isdecimal() else 1


def shape_key(canonical: dict[str, Any]) -> str:
    """What the time of a step depends on."""
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
    steps = training["steps"] if phases else None  # shares of the steps
    sections = (canonical.get(k) for k in ("network", "latent", "objective", "auxiliary"))
    plugins = [canonical["plugins"]] if canonical.get("plugins") else []
    return [*sections, *plugins, (canonical.get("augmentation") or {}).get("mask"), rest, steps]
