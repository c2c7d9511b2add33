"""Named protocols of an evaluation: what a published way of measuring fixes, and what it is taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz of ADM's evaluations (of the data's image size)"
_ADM_METRICS = ("fid", "sfid", "is", "precision", "recall")


@dataclass(frozen=True)
class Protocol:
    """A published way of measuring."""

    sampling: Mapping[str, Any]
    """Settings that it fixes, of how samples are drawn."""
    metrics: tuple[str, ...]
    """What it measures; another choice measures nothing differently, so that a spec may make one."""
    reference: str
    """The statistics that it measures against; a spec names the file."""
    source: str

    @property
    def fixed(self) -> dict[str, Any]:
        """All settings that it fixes."""
        return {**self.sampling, "extractor": "inception"}

    def spelled(self) -> str:
        """The fixed settings as a spec writes them."""
        return ", ".join(f"{name}: {value}" for name, value in self.fixed.items())


PROTOCOLS: dict[str, Protocol] = {
    "adm": Protocol(
        {"sampler": "sde", "steps": 250, "images": 50_000, "labels": "random"},
        _ADM_METRICS,
        _ADM_REFERENCE,
        "openai/guided-diffusion, scripts/image_sample.py (labels drawn uniformly), README.md (250 steps) and evaluations/; "
        "its ancestral sampler is of noise predictors: SiT's (arXiv 2401.08740), Euler-Maruyama, takes its place",
    ),
    "jit": Protocol(
        {
            "sampler": "heun",
            "steps": 50,
            "images": 50_000,
            "labels": "balanced",
            "guidance_interval": [0.1, 1.0],
            "guidance_ends": "open",
            "precision": "bf16",
        },
        ("fid", "is"),
        "jit_in256_stats.npz of JiT's repository (of the data's image size)",
        "LTH14/JiT (arXiv 2511.13720), main_jit.py, engine_jit.py and the evaluation command of its README: 50 Heun steps, guidance in "
        "t of (0.1, 1), every class equally often, bfloat16, torch-fidelity; guidance 3 for its B/16",
    ),
    "repa": Protocol(
        {
            "sampler": "sde",
            "steps": 250,
            "images": 50_000,
            "labels": "random",
            "guidance_interval": [0.3, 1.0],
            "guidance_ends": "closed",
        },
        _ADM_METRICS,
        _ADM_REFERENCE,
        "sihyun-yu/REPA (arXiv 2410.06940), generate.py, samplers.py and the evaluation command of its README: 250 Euler-Maruyama steps, "
        "labels drawn uniformly, guidance at their t <= 0.7, which is t >= 0.3 here; guidance 1.8, or 1 where a table says so",
    ),
}
"""Guidance, weights and the checkpoint are a spec's: they differ between the tables of one paper."""


def with_protocol(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation with those that its protocol fixes; without a known one they stay as they are.

    Raises:
        ValueError: another value is given beside the protocol: a number under its name would not be one of it.
    """
    found = dict(given)
    name = found.get("protocol")
    protocol = PROTOCOLS.get(name) if isinstance(name, str) else None
    if protocol is None:
        return found
    for key, value in protocol.fixed.items():
        if key in found and found[key] != value:
            raise ValueError(
                f"{key}: protocol {name!r} is measured with {key}: {value}; leave {key} out, or leave out `protocol` and write {protocol.spelled()} with your change"
            )
        found[key] = value
    found.setdefault("metrics", list(protocol.metrics))
    return found
