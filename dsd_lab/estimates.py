"""What a trial will need: parameters by role, training FLOPs, memory and time, without training it.

The counts come from the code that trains (`dsd_lab.counting`) and are remembered in the home
folder. The time is FLOPs over what this machine's matrix products reach, times a stated efficiency,
until a trial of the same shape has been timed in the home folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dsd_lab.facts import known_facts
from dsd_lab.files import read_cache, write_json
from dsd_lab.home import Home
from dsd_lab.specs.fields import Trial
from dsd_lab.specs.identity import canonical_fields

EFFICIENCY = 0.25
"""Share of the matrix-product ceiling that a training step is taken to reach (ours; measured steps replace it)."""
_CLASSES = 1000


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
    saved_bytes_per_image: int
    """Bytes that autograd keeps for the backward pass of one image."""
    role_flops: dict[str, int]
    """FLOPs of one forward pass of each role for one image."""
    auxiliary: int = 0
    """Trained weights of the auxiliary losses' heads, which are no part of the deployed network."""
    frozen: int = 0
    """Weights of the timm models that losses compare with."""

    def memory(self, images: int) -> int:
        """Bytes of weights, gradients, the optimiser's moments, copies, and activations kept for so many images at once, in float32."""
        weights = 2 * (self.params["total"] + self.auxiliary) + self.moments + sum(self.copies.values()) + self.frozen
        return 4 * weights + images * self.saved_bytes_per_image


def cached_shape(trial: Trial, home: Home, code: str) -> Shape:
    """`count_shape`, remembered in the home folder's cache where there is one (keyed by fields and training code)."""
    fields, facts = canonical_fields(trial), known_facts(home, trial.data)
    channels, classes = (1, 10) if trial.data.source in ("digits", "idx") else (3, _CLASSES)
    if facts is not None:
        channels, classes = facts["shape"][0], facts["classes"]
    kind = fields["optimiser"]["kind"]
    key = json.dumps([code, *_shape_fields(fields), kind, channels, classes], sort_keys=True)
    path = home.cache / "shapes.json"
    known = read_cache(path)
    if key not in known:
        from dsd_lab.counting import count_shape  # imports torch: only where something is counted

        known[key] = count_shape(trial, channels, classes)
        if home.root.is_dir():
            home.cache.mkdir(exist_ok=True)
            write_json(path, known)
    return Shape(**known[key])


def timed_seconds(home: Home, entries: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds a step by canonical shape, from trials that have been trained in this home folder."""
    found: dict[str, float] = {}
    for entry in entries:
        status = home.trial(entry["id"]).status()
        if status.get("state") == "done" and status.get("seconds") and status.get("step"):
            found[shape_key(entry["canonical"])] = float(status["seconds"]) / int(status["step"])
    return found


def shape_key(canonical: dict[str, Any]) -> str:
    """What the time of a step depends on."""
    training = {k: canonical["training"].get(k) for k in ("batch_size", "precision", "accumulate")}
    training |= {"compile": True} if canonical["training"].get("compile") else {}
    return json.dumps([*_shape_fields(canonical), training, canonical["optimiser"].get("kind")], sort_keys=True)


def _shape_fields(canonical: dict[str, Any]) -> list[Any]:
    """The fields that decide what a step computes."""
    training = canonical["training"]
    phases = training.get("phases") or []
    rest = {"phases": phases, "flow_steps": training.get("flow_steps"), "more_emas": training.get("more_emas")}
    steps = training["steps"] if phases else None  # shares of the steps
    sections = (canonical.get(k) for k in ("network", "latent", "objective", "auxiliary"))
    return [*sections, (canonical.get("augmentation") or {}).get("mask"), rest, steps]
