"""The state of a training run: networks, EMAs, optimiser and step; how it is built, saved and resumed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core.diffusion.auxiliary import Auxiliaries
from dsd_lab.core.model.blocks import ROLES
from dsd_lab.core.model.network import Network, attends_fused
from dsd_lab.core.observing.probes import ProbeSet
from dsd_lab.core.peers import ALONE, Peers
from dsd_lab.core.randomness import generator
from dsd_lab.core.training import checkpoints
from dsd_lab.core.training.batches import indices_of
from dsd_lab.core.training.checkpoints import load_tensors, tensors_of
from dsd_lab.core.training.clipping import clipped_parts
from dsd_lab.core.training.ema import Averaging, average_name
from dsd_lab.core.training.finiteness import Finiteness
from dsd_lab.core.training.gradient_sums import GradientSums
from dsd_lab.core.training.optimiser import build_optimiser
from dsd_lab.errors import BadInput, NoResources
from dsd_lab.specs.trial import unfit_images

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.trial import Stage, Trial


def pick_device(gpus: float) -> torch.device:
    """The GPU of this process, or the CPU if the spec asks for no GPU.

    Raises:
        NoResources: the spec asks for a GPU and there is none.
    """
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoResources(f"resources.gpus is {gpus:g}, but this process sees no GPU")
    if "LOCAL_RANK" in os.environ:  # under torchrun, every process sees all GPUs
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda")


class TrainingState:
    """The state of a trial in training; the loop is in `Trainer`.

    Args:
        trial: all fields.
        seed: seed of weights, batches, noise and times.
        data: images of the size that the network takes.
        device: where to train.
        folder: folder for checkpoints; None writes none and yields no `Checkpointed`.
        peers: the processes that train the trial, each with its own trainer.

    Raises:
        BadInput: the images are not square, or do not have the size that the network takes.
    """

    def __init__(
        self,
        trial: Trial,
        seed: int,
        data: DataSet,
        device: torch.device,
        folder: Path | None = None,
        peers: Peers = ALONE,
    ) -> None:
        if unfit := unfit_images(trial, data.train.shape):
            raise BadInput(unfit)
        self.trial, self.seed, self.data, self.device, self.folder = trial, seed, data, device, folder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "weights").initial_seed())
            self.network = Network(trial, data.channels, data.classes).to(device)
        self.network.attend_fused(attends_fused(trial.training.precision, on_gpu=device.type != "cpu"))
        self.network.activation_checkpointing = trial.training.activation_checkpointing
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.more_averages = {decay: copy.deepcopy(self.average) for decay in trial.training.extra_ema_decays}
        self.target_encoder = copy.deepcopy(self.network).requires_grad_(False) if trial.needs_target_encoder else None
        averages = {trial.training.weight_ema: self.average, **self.more_averages}
        self.averaging = {decay: Averaging(average, self.network) for decay, average in averages.items()}
        self.target_averaging = (
            Averaging(self.target_encoder, self.network) if self.target_encoder is not None else None
        )
        self.auxiliaries = Auxiliaries(trial, self.network, data.classes, device, seed).to(device)
        self.saved_modules: dict[str, torch.nn.Module] = {"network": self.network, "auxiliary": self.auxiliaries}
        """Modules saved in a checkpoint, by the prefix of their tensors."""
        self.saved_modules |= {average_name(decay, trial.training.weight_ema): part for decay, part in averages.items()}
        self.saved_modules |= {} if self.target_encoder is None else {"target": self.target_encoder}
        self.trained = torch.nn.ModuleList([self.network, self.auxiliaries])
        self.optimiser = build_optimiser(self.network, trial.optimiser, self.auxiliaries)
        self.finiteness = Finiteness(device, self.optimiser)
        if trial.training.compile:
            for network in filter(None, (self.network, self.target_encoder)):
                network.compile_blocks()
        self._share_batches(peers)
        self.clipped_parts = clipped_parts(self.network, self.auxiliaries)
        self.probe_set = ProbeSet(trial, data, self.network, device)
        self.step = 0
        self.stages = trial.stages()
        self._frozen_rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._enter(self.stages[0])
        self._sums: dict[str, Tensor] = {}
        self._summed, self._resumed_at = 0, -1
        self.resumed_told = True
        """Whether the checkpoint resumed from was announced by an event `Checkpointed`."""
        self.resumed_lines: int | None = None
        """Lines of the spool before the checkpoint resumed from, if its state has them."""

    def _share_batches(self, peers: Peers) -> None:
        part, batch = (
            self.trial.training.batch_size // self.trial.training.grad_accum_steps,
            self.trial.training.batch_size,
        )
        self.peers = peers.of_batches(part)
        own = torch.arange(part)[self.peers.rows]
        self._own_images = None if peers.alone else torch.cat([start + own for start in range(0, batch, part)])
        """Indices of this process's images in a batch; None: all."""
        self._gradient_sums = GradientSums(self.trained.parameters(), self.peers)
        for network in filter(None, (self.network, self.target_encoder)):
            network.peers = self.peers

    def _enter(self, stage: Stage) -> None:
        """Begin a stage: set its objective, and freeze its frozen roles."""
        self.stage = self.probe_set.stage = stage
        self.network.freeze(stage.frozen)
        self._gradient_sums.forget()
        for network in (self.network, self.target_encoder):
            if network is not None:
                network.normaliser.train("encode" not in stage.frozen)
        # The table of role vectors is one parameter: frozen rows have no gradient, but momentum would change them.
        table = self.network.condition.role.weight
        moments = [v for v in self.optimiser.state_of(table).values() if v.shape == table.shape]
        held = [table, *moments] if stage.frozen else []
        rows = torch.tensor([ROLES.index(role) for role in sorted(stage.frozen)], dtype=torch.int64, device=self.device)
        self._frozen_rows = [(tensor, rows, tensor.detach()[rows]) for tensor in held]

    def _stage_of_step(self) -> None:
        """Enter the stage of the next step, if it differs from the current one."""
        stage = next(s for s in reversed(self.stages) if s.start <= self.step)
        if stage is not self.stage:
            self._enter(stage)

    # -- Checkpoints -------------------------------------------------------------------------------

    def save(self, folder: Path | None = None, told: bool = True, **more: Any) -> None:
        """Write a checkpoint of everything that the next step depends on.

        Args:
            folder: where to write; None: the trial's checkpoints.
            told: whether an event `Checkpointed` announces it; not so for a checkpoint at a requested stop.
            more: further state.
        """
        folder = folder or self.folder
        assert folder is not None
        tensors = {k: v for name, part in self.saved_modules.items() for k, v in tensors_of(part, name).items()}
        tensors |= {f"optimiser.{k}": v for k, v in checkpoints.flatten_optimiser(self.optimiser).items()}
        tensors |= {f"sums.{k}": v for k, v in self._sums.items()}
        state = {
            "summed": self._summed,
            "data": self.data.fingerprint,
            "device": self.device.type,
            "processes": self.peers.size,
            "told": told,
            **more,
        }
        watch = self.trial.observation
        checkpoints.save_checkpoint(folder, self.step, tensors, state, watch.checkpoints_kept, watch.keep_every)

    def save_crash(self, folder: Path, reason: str) -> None:
        """Save what is needed to reproduce a diverged step: weights, image indices, seed and step."""
        batch = indices_of(self.trial, self.seed, self.step, len(self.data.train))
        self.save(folder, reason=reason, seed=self.seed, batch=batch.tolist())

    def _newest_checkpoint(
        self, usable: Callable[[dict[str, Any]], bool]
    ) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint that the leader chooses; all processes read it."""
        if self.folder is None:
            return None
        found = checkpoints.newest_checkpoint(self.folder, usable) if self.peers.leads else None
        at = self.peers.leaders(-1 if found is None else _step_of(found[0]))
        if self.peers.leads or at < 0:
            return found
        path = self.folder / f"step-{at:09d}"
        return path, *checkpoints.load_checkpoint(path)

    def resume(self, usable: Callable[[dict[str, Any]], bool] = lambda state: True) -> bool:
        """Restore the newest intact checkpoint; False if there is none.

        Args:
            usable: given a checkpoint's state, whether it may be used; if not, an older one is tried.

        Raises:
            BadInput: the checkpoint was trained on other images or another kind of device.
            CorruptCheckpoint: the checkpoint is intact but belongs to another network.
        """
        if (found := self._newest_checkpoint(usable)) is None:
            return False
        path, tensors, state = found
        if state["data"] != self.data.fingerprint:
            raise BadInput(f"{path}: trained on other images than those at hand; declare a new data.revision")
        if state["device"] != self.device.type:
            raise BadInput(
                f"{path}: trained on {state['device']} so far and cannot resume on {self.device.type}; set resources.gpus as it was, or remove the trial's folder to train it anew"
            )
        for name, part in self.saved_modules.items():
            load_tensors(part, name, tensors, path)
        checkpoints.restore_optimiser(self.optimiser, _part(tensors, "optimiser"))
        self._sums = {k: v.to(self.device) for k, v in _part(tensors, "sums").items()}
        self._summed, self.resumed_told = int(state["summed"]), bool(state.get("told", True))
        self.resumed_lines = state.get("lines")
        self.step = self._resumed_at = _step_of(path)
        self._enter(self.stage)  # frozen rows come from the checkpoint
        self._stage_of_step()
        return True


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
