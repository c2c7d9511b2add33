"""The trainer: one loop of fixed order that yields events and knows no logger.

At every step: probe, draw, checkpoint, then the optimiser step, then the record. The loop never
asks which variant it runs; everything that differs is in the objective that the spec names.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsd_lab.core import checkpoints
from dsd_lab.core.events import Checkpointed, Diverged, Drew, Event, Finished, Logged, Probed
from dsd_lab.core.network import Network
from dsd_lab.core.objectives import Draws, losses
from dsd_lab.core.optimisation import (
    average_into,
    build_optimiser,
    learning_rate,
    load_tensors,
    ramped_decay,
    tensors_of,
    warmed_decay,
)
from dsd_lab.core.paths import draw_times
from dsd_lab.core.probes import ProbeSet
from dsd_lab.core.randomness import batch_indices, generator
from dsd_lab.core.samplers import sample_latents
from dsd_lab.errors import BadInput, NoResources

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.specs.fields import Trial

_SHOWN_STEPS = 20
"""Heun steps of the grids drawn while training; evaluations have settings of their own."""


def pick_device(gpus: float) -> torch.device:
    """The GPU that this process was given, or the CPU where the spec asks for none.

    Raises:
        NoResources: a GPU was asked for and there is none.
    """
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoResources(f"resources.gpus is {gpus:g}, but this process sees no GPU")
    return torch.device("cuda")


class Trainer:
    """Trains one trial.

    Args:
        trial: all fields.
        seed: of weights, batches, noise and times.
        data: images, whose size the trial's network must have.
        device: where to train.
        folder: where checkpoints go; None keeps none (the events `Checkpointed` are left out).

    Raises:
        BadInput: the images are not square, or not of the size that the network takes.
    """

    def __init__(
        self, trial: Trial, seed: int, data: DataSet, device: torch.device, folder: Path | None = None
    ) -> None:
        height, width = data.train.pixels.shape[2:]
        if height != width:
            raise BadInput(f"the images of {trial.data.source!r} are {height} x {width} pixels; only square ones train")
        if trial.network.image_size != data.image_size:
            raise BadInput(
                f"network.image_size is {trial.network.image_size}, but the images of {trial.data.source!r} are {data.image_size} pixels a side"
            )
        self.trial, self.seed, self.data, self.device, self.folder = trial, seed, data, device, folder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "weights").initial_seed())
            self.network = Network(trial, data.channels, data.classes).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        needs_target = trial.objective.diffusion_weight > 0 and trial.objective.target == "ema"
        self.target_encoder = copy.deepcopy(self.network).requires_grad_(False) if needs_target else None
        self.optimiser = build_optimiser(self.network, trial.optimiser)
        self.probe_set = ProbeSet(trial, data, self.network, device)
        self.step = 0
        self._sums: dict[str, Tensor] = {}
        self._summed, self._resumed_at = 0, -1
        self.resumed_told = True
        """Whether an event told of the checkpoint that was resumed from."""

    # -- One step ----------------------------------------------------------------------------------

    def draw(self, step: int) -> tuple[Tensor, Draws]:
        """Images [B, C, H, W] and random numbers of the global batch of a step."""
        size, trial = self.trial.training.batch_size, self.trial
        x, y = self.data.train.at(batch_indices(self.seed, step, size, len(self.data.train)), self.device)
        source = generator(self.seed, "step", step, self.device)
        t = draw_times(trial.time, size, source)
        shape = (size, self.network.tokens, self.network.latent_channels)
        e = torch.randn(shape, generator=source, device=self.device)
        dropped = torch.rand(size, generator=source, device=self.device) < trial.labels.drop
        noise = torch.randn(shape, generator=source, device=self.device) if trial.latent.decoder_noise > 0 else None
        latent = generator(self.seed, "latent", step, self.device) if self.network.normaliser.noisy else None
        latent_e = None if latent is None else torch.randn(shape, generator=latent, device=self.device)
        return x, Draws(t, e, y.masked_fill(dropped, self.data.classes), noise, latent_e)

    def train_step(self) -> Diverged | None:
        """One optimiser step; none is taken, and the event returned, where loss or gradient is not finite."""
        trial = self.trial
        x, draws = self.draw(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=trial.training.precision == "bf16"):
            found = losses(self.network, self.target_encoder, x, draws, trial)
        self.optimiser.zero_grad(set_to_none=True)
        found.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), trial.optimiser.clip)
        if not bool(torch.isfinite(found.total) & torch.isfinite(norm)):
            what = "loss" if not bool(torch.isfinite(found.total)) else "gradient"
            return Diverged(self.step, f"the {what} of step {self.step + 1} is not finite")
        rate = learning_rate(trial.optimiser, self.step, trial.training.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        average_into(self.average, self.network, warmed_decay(trial.training.weight_ema, self.step))
        if self.target_encoder is not None:
            decay = ramped_decay(trial.objective.target_decay, trial.objective.target_warmup, self.step)
            average_into(self.target_encoder, self.network, decay)
        self.step += 1
        self._record({"loss": found.total, **found.terms, "gradient_norm": norm, "learning_rate": torch.tensor(rate)})
        return None

    def _record(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1

    # -- The loop ----------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train from `self.step` to the end, yielding events.

        Args:
            stop: asked before every step; where it says so, a checkpoint is saved and no `Finished` told.
        """
        watch, steps = self.trial.observation, self.trial.training.steps
        seconds = 0.0
        while True:
            last = self.step == steps
            if self.step != self._resumed_at:
                if self.step % self.trial.probe.every == 0 or last:
                    started = time.perf_counter()
                    metrics, spectra = self.probe_set.measure(self.network, self.target_encoder)
                    yield Probed(self.step, metrics, spectra, time.perf_counter() - started)
                if (self.step % watch.images_every == 0 and self.step > 0) or last:
                    yield Drew(self.step, self.draw_images())
                if self.folder is not None and ((self.step % watch.checkpoint_every == 0 and self.step > 0) or last):
                    started = time.perf_counter()
                    self.save()
                    yield Checkpointed(self.step, time.perf_counter() - started)
            if last:
                yield Finished(self.step, self.step * self.trial.training.batch_size)
                return
            if stop():
                if self.folder is not None and self.step % watch.checkpoint_every and self.step != self._resumed_at:
                    self.save(told=False)
                return
            started = time.perf_counter()
            diverged = self.train_step()
            seconds += time.perf_counter() - started
            if diverged is not None:
                yield diverged
                return
            if self.step % watch.log_every == 0 or self.step == steps:
                yield self._logged(seconds)
                seconds = 0.0

    def _logged(self, seconds: float) -> Logged:
        metrics = {f"train/{name}": float(total) / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        return Logged(self.step, metrics, seconds)

    @torch.no_grad()
    def draw_images(self) -> dict[str, Tensor]:
        """Held-out images, their reconstructions, and samples of the averaged weights with their labels."""
        count = min(self.trial.observation.images, len(self.probe_set.x))
        x, y = self.probe_set.x[:count], self.probe_set.y[:count]
        images = {"reconstruction": torch.stack([x, self.average.decode(self.average.encode(x))], 1).flatten(0, 1)}
        if self.trial.objective.diffusion_weight > 0:
            z = sample_latents(
                self.average, self.probe_set.e[:count], y, "heun", _SHOWN_STEPS, 1.0, self.trial.objective
            )
            images["samples"] = self.average.decode(z)
        return {name: to_bytes(value) for name, value in images.items()}

    # -- State -------------------------------------------------------------------------------------

    def save(self, folder: Path | None = None, told: bool = True, **more: Any) -> None:
        """Write a checkpoint of everything that the next step depends on.

        Args:
            folder: where, if not among the trial's own.
            told: an event tells of it; one that is saved because training was asked to stop has none.
            more: further state.
        """
        folder = folder or self.folder
        assert folder is not None
        tensors = tensors_of(self.network, "network") | tensors_of(self.average, "average")
        if self.target_encoder is not None:
            tensors |= tensors_of(self.target_encoder, "target")
        tensors |= {f"optimiser.{k}": v for k, v in checkpoints.flatten_optimiser(self.optimiser).items()}
        tensors |= {f"sums.{k}": v for k, v in self._sums.items()}
        state = {
            "summed": self._summed,
            "data": self.data.fingerprint,
            "device": self.device.type,
            "told": told,
            **more,
        }
        checkpoints.save_checkpoint(folder, self.step, tensors, state, self.trial.observation.checkpoints_kept)

    def save_crash(self, folder: Path, reason: str) -> None:
        """What a step that was not taken can be done again with: weights, images; its random numbers follow from seed and step."""
        batch = batch_indices(self.seed, self.step, self.trial.training.batch_size, len(self.data.train))
        self.save(folder, reason=reason, seed=self.seed, batch=batch.tolist())

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False where there is none.

        Raises:
            BadInput: the checkpoint was trained on other images.
            CorruptCheckpoint: it is whole but of another network.
        """
        found = checkpoints.newest_checkpoint(self.folder) if self.folder is not None else None
        if found is None:
            return False
        path, tensors, state = found
        if state["data"] != self.data.fingerprint:
            raise BadInput(f"{path}: trained on other images than those at hand; declare a new data.revision")
        if state["device"] != self.device.type:
            raise BadInput(
                f"{path}: trained on {state['device']} so far and would go on on {self.device.type}; set resources.gpus as it was, or remove the trial's folder to train it anew"
            )
        load_tensors(self.network, "network", tensors, path)
        load_tensors(self.average, "average", tensors, path)
        if self.target_encoder is not None:
            load_tensors(self.target_encoder, "target", tensors, path)
        checkpoints.restore_optimiser(self.optimiser, _part(tensors, "optimiser"))
        self._sums = {k: v.to(self.device) for k, v in _part(tensors, "sums").items()}
        self._summed, self.resumed_told = int(state["summed"]), bool(state.get("told", True))
        self.step = self._resumed_at = int(path.name.removeprefix("step-"))
        return True


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [-1, 1] -> uint8 on the CPU, rounded; what is not finite becomes black."""
    return ((images.float().nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255).byte().cpu()
