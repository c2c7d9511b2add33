"""Count FLOPs, parameters and activations of a training step by running the training code on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsd_lab.core.diffusion.auxiliary import Auxiliaries
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.blocks import ROLES
from dsd_lab.core.model.network import Network, attends_fused, count_parameters
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.optimiser import hidden_matrices
from dsd_lab.specs.trial import blocks_of, uses_target_encoder

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Stage, Trial

_COUNTED_BATCH = 2
_MEMORY_BATCH = 1024
"""Images of the step whose bytes are counted: so many that gradients of the weights are the smaller part."""
_META, _CPU = torch.device("meta"), torch.device("cpu")


def count_shape(trial: Trial, channels: int, classes: int) -> dict[str, Any]:
    """The fields of `dsd_lab.planning.estimates.Shape` for a trial. With phases, FLOPs are the mean per step."""
    found = []
    for stage, _ in _stages(trial):
        network = _network(trial, channels, classes, _META)
        network.freeze(stage.frozen)
        network.activation_checkpointing = trial.training.activation_checkpointing
        found.append(_count_flops(network, stage.trial, channels, classes))
    flops = sum(share * count for (_, share), count in zip(_stages(trial), found, strict=True))
    network = _network(trial, channels, classes, _META)
    params, auxiliaries = count_parameters(network), _auxiliaries(network, trial, classes)
    copies = {"average": params["total"]} | {f"average@{d!r}": params["total"] for d in trial.training.extra_ema_decays}
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
        "stage_flops": found,
        "role_flops": _count_roles(network, trial, channels),
    }


def count_bytes(trial: Trial, channels: int, classes: int) -> int:
    """Bytes per image that a step keeps for its backward pass, without weights, in the phase that keeps most.

    With `training.activation_checkpointing`, adds what one block keeps during recomputation. Uses fake CPU tensors,
    on which autocast and fused attention behave as on a GPU; on the meta device they do not.
    """
    kept = max(_kept_bytes(trial, stage, channels, classes) for stage, _ in _stages(trial))
    if not trial.training.activation_checkpointing:
        return kept // _MEMORY_BATCH
    plain = trial.model_copy(update={"training": trial.training.model_copy(update={"activation_checkpointing": False})})
    passes = sum(blocks_of(trial, role) for role in ROLES)
    return (kept + (count_bytes(plain, channels, classes) * _MEMORY_BATCH - kept) // passes) // _MEMORY_BATCH


def _kept_bytes(trial: Trial, stage: Stage, channels: int, classes: int) -> int:
    """Bytes of tensors that the forward pass of `_MEMORY_BATCH` images saves in a phase, each storage once."""
    # Imported here: takes a second, and a sweep does not need it.
    from torch._subclasses.fake_tensor import FakeTensorMode

    auxiliaries = _auxiliaries(_network(trial, channels, classes, _META), trial, classes)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with FakeTensorMode():
        network = _network(trial, channels, classes, _CPU)
        network.freeze(stage.frozen)
        network.activation_checkpointing = trial.training.activation_checkpointing
        network.attend_fused(attends_fused(trial.training.precision, on_gpu=trial.resources.gpus > 0))
        others = (auxiliaries, *(backbone.model for backbone in auxiliaries.backbones()))
        for module in others:
            _place(module, _CPU)
        target = network if _has_target(stage.trial) else None
        x, draws = _images(trial, channels, _MEMORY_BATCH, _CPU), _draws(network, stage.trial, _MEMORY_BATCH, _CPU)
        reduced = trial.training.precision == "bf16"
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(_CPU.type, torch.bfloat16, enabled=reduced),
        ):
            losses(network, target, x, draws, stage.trial, auxiliaries)
        weights = {id(p.untyped_storage()) for module in (network, *others) for p in module.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def _stages(trial: Trial) -> list[tuple[Stage, float]]:
    """Stages of training and the share of steps of each."""
    stages, steps = trial.stages(), trial.training.steps
    ends = [*(stage.start for stage in stages[1:]), steps]
    return [(stage, (end - stage.start) / steps) for stage, end in zip(stages, ends, strict=True)]


def _network(trial: Trial, channels: int, classes: int, device: torch.device) -> Network:
    with device:
        return Network(trial, channels, classes)


def _auxiliaries(network: Network, trial: Trial, classes: int) -> Auxiliaries:
    with _META:
        return Auxiliaries(trial, network, classes, _META)


def _images(trial: Trial, channels: int, count: int = _COUNTED_BATCH, device: torch.device = _META) -> torch.Tensor:
    size = trial.network.image_size
    assert size is not None
    return torch.zeros(count, channels, size, size, device=device)


def _draws(network: Network, trial: Trial, count: int, device: torch.device) -> Draws:
    again = trial.training.noise_draws
    with device:
        noise = torch.zeros(count, network.tokens, network.latent_channels)
        return Draws(
            torch.zeros(again * count),
            noise.repeat(again, 1, 1),
            torch.zeros(again * count, dtype=torch.long),
            noise if trial.latent.decoder_noise else None,
            noise if network.normaliser.noisy else None,
            torch.zeros(count, network.tokens, dtype=torch.bool) if trial.augmentation.mask else None,
            torch.zeros(count, dtype=torch.long),
        )


def _has_target(trial: Trial) -> bool:
    return uses_target_encoder(trial.objective) or trial.auxiliary.needs_target_encoder


def _count_flops(network: Network, trial: Trial, channels: int, classes: int) -> int:
    """FLOPs per image, forward and backward, with recomputation by `training.activation_checkpointing`."""
    draws, auxiliaries = _draws(network, trial, _COUNTED_BATCH, _META), _auxiliaries(network, trial, classes)
    target = network if _has_target(trial) else None
    with FlopCounterMode(display=False) as counter:
        losses(network, target, _images(trial, channels), draws, trial, auxiliaries).total.backward()
    return int(counter.get_total_flops() // _COUNTED_BATCH)


def _place(module: torch.nn.Module, device: torch.device) -> None:
    """Allocate parameters without data on a device. `Module.to_empty` swaps tensors, which fails with fake tensors."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            placed = torch.nn.Parameter(torch.empty(weight.shape, device=device), weight.requires_grad)
            part.register_parameter(name, placed)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


def _count_roles(network: Network, trial: Trial, channels: int) -> dict[str, int]:
    """Forward FLOPs of each role per image."""
    found = {}
    with torch.no_grad(), torch.device("meta"):
        x = _images(trial, channels)
        z = torch.zeros(_COUNTED_BATCH, network.tokens, network.latent_channels)
        t, y = torch.zeros(_COUNTED_BATCH), torch.zeros(_COUNTED_BATCH, dtype=torch.long)
        passes: dict[str, Callable[[], torch.Tensor]] = {
            "encode": lambda: network.encode(x),
            "denoise": lambda: network.denoise(z, t, y),
            "decode": lambda: network.decode(z),
        }
        for role, run in passes.items():
            with FlopCounterMode(display=False) as counter:
                run()
            found[role] = counter.get_total_flops() // _COUNTED_BATCH
    return found
