"""Counts of a training step on torch's meta device, from the code that trains: no weight is made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsd_lab.core.auxiliary import Auxiliaries
from dsd_lab.core.network import Network, count_parameters
from dsd_lab.core.objectives import Draws, losses
from dsd_lab.core.optimisation import hidden_matrices
from dsd_lab.specs.fields import uses_target_encoder

if TYPE_CHECKING:
    from dsd_lab.specs.fields import Trial

_COUNTED_BATCH = 2


def count_shape(trial: Trial, channels: int, classes: int) -> dict[str, Any]:
    """Counts of one training step: the fields of `dsd_lab.estimates.Shape`.

    With phases, FLOPs are the mean over all steps, and kept bytes those of the largest phase.
    """
    stages, steps = trial.stages(), trial.training.steps
    ends = [*(stage.start for stage in stages[1:]), steps]
    flops, kept = 0.0, 0
    for stage, end in zip(stages, ends, strict=True):
        network = _network(trial, channels, classes)
        network.freeze(stage.frozen)
        its_flops, its_kept = _count_step(network, stage.trial, channels, classes)
        flops, kept = flops + its_flops * (end - stage.start) / steps, max(kept, its_kept)
    network = _network(trial, channels, classes)
    params, auxiliaries = count_parameters(network), _auxiliaries(network, trial, classes)
    copies = {"average": params["total"]} | {f"average@{d!r}": params["total"] for d in trial.training.more_emas}
    copies |= {"target": params["total"]} if trial.needs_target_encoder else {}
    heads = sum(p.numel() for p in auxiliaries.parameters())
    muon = sum(p.numel() for p in hidden_matrices(network)) if trial.optimiser.kind == "muon" else 0
    return {
        "params": params,
        "copies": copies,
        "auxiliary": heads,
        "frozen": auxiliaries.frozen_parameters(),
        "moments": 2 * (params["total"] + heads) - muon,
        "flops_per_image": round(flops),
        "saved_bytes_per_image": kept,
        "role_flops": _count_roles(network, trial, channels),
    }


def _network(trial: Trial, channels: int, classes: int) -> Network:
    with torch.device("meta"):
        return Network(trial, channels, classes)


def _auxiliaries(network: Network, trial: Trial, classes: int) -> Auxiliaries:
    with torch.device("meta"):
        return Auxiliaries(trial, network, classes, torch.device("meta"))


def _images(trial: Trial, channels: int) -> torch.Tensor:
    size = trial.network.image_size
    assert size is not None
    return torch.zeros(_COUNTED_BATCH, channels, size, size, device="meta")


def _count_step(network: Network, trial: Trial, channels: int, classes: int) -> tuple[int, int]:
    """FLOPs an image, forward and backward, and bytes that autograd keeps for it."""
    again = trial.training.flow_steps
    with torch.device("meta"):
        noise = torch.zeros(_COUNTED_BATCH, network.tokens, network.latent_channels)
        draws = Draws(
            torch.zeros(again * _COUNTED_BATCH),
            noise.repeat(again, 1, 1),
            torch.zeros(again * _COUNTED_BATCH, dtype=torch.long),
            noise if trial.latent.decoder_noise else None,
            noise if network.normaliser.noisy else None,
            torch.zeros(_COUNTED_BATCH, network.tokens, dtype=torch.bool) if trial.augmentation.mask else None,
            torch.zeros(_COUNTED_BATCH, dtype=torch.long),
        )
    auxiliaries = _auxiliaries(network, trial, classes)
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            alive.append(tensor)  # an id is only its own while the tensor lives
        return tensor

    target = network if uses_target_encoder(trial.objective) or trial.auxiliary.needs_target_encoder else None
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses(network, target, _images(trial, channels), draws, trial, auxiliaries).total.backward()
    return counter.get_total_flops() // _COUNTED_BATCH, sum(kept.values()) // _COUNTED_BATCH


def _count_roles(network: Network, trial: Trial, channels: int) -> dict[str, int]:
    """FLOPs of one forward pass of each role for one image."""
    found = {}
    with torch.no_grad(), torch.device("meta"):
        x = _images(trial, channels)
        z = torch.zeros(_COUNTED_BATCH, network.tokens, network.latent_channels)
        t, y = torch.zeros(_COUNTED_BATCH), torch.zeros(_COUNTED_BATCH, dtype=torch.long)
        passes = {
            "encode": lambda: network.encode(x),
            "denoise": lambda: network.denoise(z, t, y),
            "decode": lambda: network.decode(z),
        }
        for role, run in passes.items():
            with FlopCounterMode(display=False) as counter:
                run()
            found[role] = counter.get_total_flops() // _COUNTED_BATCH
    return found


def matrix_ceiling(threads: int) -> float:
    """FLOPs a second that float32 matrix products reach here with this many threads: the best of some moments of 5 ms, since other work may have the rest."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(512, 512), torch.randn(512, 512)
        a @ b
        fastest = 0.0
        for _ in range(20):
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < 0.005:
                a @ b
                count += 1
            fastest = max(fastest, count * 2 * 512**3 / (time.perf_counter() - began))
        return fastest
    finally:
        torch.set_num_threads(before)
