"""Count FLOPs, parameters and activations of a training step by running the training code on tensors without data.

Where a plug-in's part needs values, or an operation without a kernel for such tensors, the same is counted with a few
images and the network's weights on the CPU. It takes longer and gives the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsd_lab.core.diffusion.auxiliary import Auxiliaries
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.blocks import ROLES
from dsd_lab.core.model.network import Network, attends_fused, count_parameters
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.optimiser import hidden_matrices
from dsd_lab.errors import BadInput
from dsd_lab.planning.formulas import stage_shares
from dsd_lab.specs.identity import canonical_fields
from dsd_lab.specs.plugins import plugin_place
from dsd_lab.specs.registry import find_plugin_part
from dsd_lab.specs.sources import named_backbones
from dsd_lab.specs.trial import blocks_of, uses_target_encoder

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Stage, Trial

_COUNTED_BATCH = 2
_MEMORY_BATCH = 1024
"""Images of the step whose bytes are counted: so many that gradients of the weights are the smaller part."""
_FEW = 8
"""The same with values. A batch of twice as many is counted too: the difference leaves out what is kept once per batch."""
_META, _CPU = torch.device("meta"), torch.device("cpu")
Counted = TypeVar("Counted")


def count_shape(trial: Trial, channels: int, classes: int) -> dict[str, Any]:
    """The fields of `dsd_lab.planning.estimates.Shape` for a trial. With phases, FLOPs are the mean per step.

    Raises:
        BadInput: a plug-in's part fails; the message has its file and line.
    """
    return _counted(trial, lambda device: _count_shape(trial, channels, classes, device))


def _counted(trial: Trial, count: Callable[[torch.device], Counted]) -> Counted:
    """A count on tensors without data; with values on the CPU, where a plug-in's part cannot do without."""
    used = [key.split("/", 1) for key in canonical_fields(trial).get("plugins", {})]
    try:
        return count(_META)
    except BadInput:
        raise
    except Exception:
        if not used:
            raise
    try:
        with torch.random.fork_rng(devices=[]):
            return count(_CPU)
    except BadInput:
        raise
    except Exception as error:
        parts = [part for kind, name in used if (part := find_plugin_part(kind, name)) is not None]
        names = ", ".join(f"{part.kind} {part.name!r} ({part.where})" for part in parts)
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        fault = f"{type(error).__name__}: {text}"
        raise BadInput(f"{plugin_place(error) or 'backward pass'}: {fault}; raised by {names}") from error


def _count_shape(trial: Trial, channels: int, classes: int, device: torch.device) -> dict[str, Any]:
    found = []
    for stage, _ in stage_shares(trial):
        network = _network(trial, channels, classes, device)
        network.freeze(stage.frozen)
        network.activation_checkpointing = trial.training.activation_checkpointing
        found.append(_count_flops(network, stage.trial, channels, classes))
    flops = sum(share * count for (_, share), count in zip(stage_shares(trial), found, strict=True))
    network = _network(trial, channels, classes, device)
    params, auxiliaries = count_parameters(network), _auxiliaries(network, trial, classes, device)
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

    Raises:
        BadInput: as `count_shape`.
    """
    return _counted(trial, lambda device: _count_bytes(trial, channels, classes, fake=device == _META))


def _count_bytes(trial: Trial, channels: int, classes: int, fake: bool) -> int:
    def of_stage(stage: Stage) -> int:
        if fake:
            return _kept_bytes(trial, stage, channels, classes, _MEMORY_BATCH, fake)
        few, twice = (_kept_bytes(trial, stage, channels, classes, n, fake) for n in (_FEW, 2 * _FEW))
        return (twice - few) * (_MEMORY_BATCH // _FEW)

    kept = max(of_stage(stage) for stage, _ in stage_shares(trial))
    if not trial.training.activation_checkpointing:
        return kept // _MEMORY_BATCH
    plain = trial.model_copy(update={"training": trial.training.model_copy(update={"activation_checkpointing": False})})
    passes = sum(blocks_of(trial, role) for role in ROLES)
    return (kept + (_count_bytes(plain, channels, classes, fake) * _MEMORY_BATCH - kept) // passes) // _MEMORY_BATCH


def _kept_bytes(trial: Trial, stage: Stage, channels: int, classes: int, images: int, fake: bool) -> int:
    """Bytes of the tensors that the forward pass of so many images keeps in one phase, each storage once."""
    # Imported here: takes a second, and a sweep does not need it.
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Built outside of the mode: timm's models are not made of fake tensors.
    auxiliaries = _auxiliaries(_network(trial, channels, classes, _META), trial, classes, _META if fake else _CPU)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    mode: contextlib.AbstractContextManager[object] = FakeTensorMode() if fake else contextlib.nullcontext()
    with mode:
        network = _network(trial, channels, classes, _CPU)
        network.freeze(stage.frozen)
        network.activation_checkpointing = trial.training.activation_checkpointing
        network.attend_fused(attends_fused(trial.training.precision, on_gpu=trial.resources.gpus > 0))
        others = (auxiliaries, *(backbone.model for backbone in auxiliaries.backbones()))
        for module in others if fake else ():
            _place(module, _CPU)
        target = network if _has_target(stage.trial) else None
        x, draws = _images(trial, channels, images, _CPU), _draws(network, stage.trial, images, _CPU)
        reduced = trial.training.precision == "bf16"
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(_CPU.type, torch.bfloat16, enabled=reduced),
        ):
            losses(network, target, x, draws, stage.trial, auxiliaries)
        weights = {id(p.untyped_storage()) for module in (network, *others) for p in module.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def _network(trial: Trial, channels: int, classes: int, device: torch.device) -> Network:
    with device:
        made = Network(trial, channels, classes)
    if device == _CPU:
        made.attend_fused(False)  # products, whose FLOPs are counted
    return made


def _auxiliaries(network: Network, trial: Trial, classes: int, device: torch.device) -> Auxiliaries:
    """The auxiliary losses; the weights of frozen models are not read."""
    with device:
        made = Auxiliaries(trial, network, classes, _META if named_backbones(trial) else device)
    for backbone in made.backbones() if device != _META else ():
        _place(backbone.model, device)
    return made


def _images(trial: Trial, channels: int, count: int, device: torch.device) -> torch.Tensor:
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
    device = network.position.device
    draws, auxiliaries = _draws(network, trial, _COUNTED_BATCH, device), _auxiliaries(network, trial, classes, device)
    target, x = network if _has_target(trial) else None, _images(trial, channels, _COUNTED_BATCH, device)
    with FlopCounterMode(display=False) as counter:
        losses(network, target, x, draws, trial, auxiliaries).total.backward()
    return int(counter.get_total_flops() // _COUNTED_BATCH)


def _place(module: torch.nn.Module, device: torch.device) -> None:
    """Allocate parameters without data on a device. `Module.to_empty` swaps tensors, which fails with fake tensors."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            placed = torch.nn.Parameter(torch.zeros(weight.shape, device=device), weight.requires_grad)
            part.register_parameter(name, placed)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))


def _count_roles(network: Network, trial: Trial, channels: int) -> dict[str, int]:
    """Forward FLOPs of each role per image."""
    found = {}
    device = network.position.device
    with torch.no_grad(), device:
        x = _images(trial, channels, _COUNTED_BATCH, device)
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
