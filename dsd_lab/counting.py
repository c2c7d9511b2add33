"""Counts of a training step on torch's meta device, from the code that trains: no weight is made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsd_lab.core.auxiliary import Auxiliaries
from dsd_lab.core.network import Network, count_parameters
from dsd_lab.core.objectives import Draws, losses

if TYPE_CHECKING:
    from dsd_lab.specs.fields import Trial

_COUNTED_BATCH = 2


def count_shape(trial: Trial, channels: int, classes: int) -> dict[str, Any]:
    """Counts of one training step: the fields of `dsd_lab.estimates.Shape`."""
    with torch.device("meta"):
        network = Network(trial, channels, classes)
        size = trial.network.image_size
        assert size is not None
        x = torch.zeros(_COUNTED_BATCH, channels, size, size)
        noise = torch.zeros(_COUNTED_BATCH, network.tokens, network.latent_channels)
        draws = Draws(
            torch.zeros(_COUNTED_BATCH),
            noise,
            torch.zeros(_COUNTED_BATCH, dtype=torch.long),
            noise if trial.latent.decoder_noise else None,
            noise if network.normaliser.noisy else None,
            torch.zeros(_COUNTED_BATCH, network.tokens, dtype=torch.bool) if trial.augmentation.mask else None,
            torch.zeros(_COUNTED_BATCH, dtype=torch.long),
        )
        auxiliaries = Auxiliaries(trial, network, classes, torch.device("meta"))
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            alive.append(tensor)  # an id is only its own while the tensor lives
        return tensor

    target = network if trial.needs_target_encoder else None
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses(network, target, x, draws, trial, auxiliaries).total.backward()
    params = count_parameters(network)
    copies = {"average": params["total"], **({"target": params["total"]} if target is not None else {})}
    return {
        "params": params,
        "copies": copies,
        "auxiliary": sum(p.numel() for p in auxiliaries.parameters()),
        "frozen": auxiliaries.frozen_parameters(),
        "flops_per_image": counter.get_total_flops() // _COUNTED_BATCH,
        "saved_bytes_per_image": sum(kept.values()) // _COUNTED_BATCH,
    }


def matrix_ceiling(threads: int) -> float:
    """FLOPs a second that float32 matrix products reach here with this many threads (50 ms of measuring)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(512, 512), torch.randn(512, 512)
        a @ b
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.05:
            a @ b
            count += 1
        return count * 2 * 512**3 / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
