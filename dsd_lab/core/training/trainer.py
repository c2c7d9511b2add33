"""The trainer: one loop that yields events.

Order of every step: probe, pictures, checkpoint, optimiser step, record. The loop does not know which variant it
trains: all differences are in the objective.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dsd_lab.core.data import BATCHES_AHEAD
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.observing.pictures import draw_pictures
from dsd_lab.core.peers import ALONE
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.batches import draw_batch, indices_of
from dsd_lab.core.training.clipping import clip_gradients
from dsd_lab.core.training.ema import ramped_decay, warmed_decay
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Event, Finished, Logged, Probed
from dsd_lab.core.training.schedule import learning_rate
from dsd_lab.core.training.state import TrainingState
from dsd_lab.core.training.state import pick_device as pick_device


class Trainer(TrainingState):
    """Trains one trial; arguments as in `TrainingState`."""

    # -- One step ----------------------------------------------------------------------------------

    def _restore_frozen_rows(self) -> None:
        with torch.no_grad():
            for tensor, rows, before in self._frozen_rows:
                tensor.index_copy_(0, rows, before)

    def draw(self, step: int) -> tuple[Tensor, Draws]:
        """Images [B, C, H, W] and random numbers of a step's batch; the next batches are prefetched.

        With several processes, each gets only the rows of its own images.
        """
        train, steps, own = self.data.train, self.trial.training.steps, self._own_images
        batch = draw_batch(self.trial, self.seed, step, self.data, self.network, self.device, own)
        coming = range(step + 1, min(step + 1 + BATCHES_AHEAD, steps))
        ahead = (indices_of(self.trial, self.seed, later, len(train)) for later in coming)
        train.prefetch(ahead if own is None else (indices[own] for indices in ahead))
        return batch

    def gradients(self, x: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Backward pass of a batch x [B, C, H, W], in `grad_accum_steps` parts; returns loss and terms as scalars."""
        self.optimiser.zero_grad(set_to_none=True)
        training, images = self.trial.training, len(x)
        part = images // training.grad_accum_steps
        share = self.peers.share / training.grad_accum_steps
        sums: dict[str, Tensor] = {}
        for start in range(0, images, part):
            chosen = slice(start, start + part)
            its_draws = draws if part == images else draws.of_images(chosen, images)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                found = losses(
                    self.network,
                    self.target_encoder,
                    x[chosen],
                    its_draws,
                    self.stage.trial,
                    self.auxiliaries,
                    self.step,
                )
            if start + part == images:
                self._gradient_sums.begin()
            (found.total if share == 1 else found.total * share).backward()
            balance = {f"balance/{name}": value for name, value in found.multipliers.items()}
            for name, value in {"loss": found.total, **found.terms, **balance}.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        self._gradient_sums.end()
        return self.peers.totals(sums)

    def train_step(self) -> Diverged | None:
        """One optimiser step. If loss or gradient are not finite, no step is taken and an event is returned.

        On a GPU the event comes one step later. Weights and moments are then those before the diverged step; EMAs were
        updated once more.
        """
        trial = self.trial
        x, draws = self.draw(self.step)
        found = self.gradients(x, draws)
        norm, clipped = clip_gradients(self.clipped_parts, trial.optimiser.clip)
        self.finiteness.watch(self.step, found["loss"], norm)
        if (diverged := self.diverged()) is not None:
            return diverged
        rate = learning_rate(trial.optimiser, self.step, trial.training.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimiser.step()
        self._restore_frozen_rows()
        for decay, average in self.averaging.items():
            average.follow(warmed_decay(decay, self.step))
        if self.target_averaging is not None:
            objective = self.stage.trial.objective
            self.target_averaging.follow(ramped_decay(objective.target_decay, objective.target_warmup, self.step))
        self.step += 1
        shares = {f"clipped/{name}": value for name, value in clipped.items()}
        self._record({**found, "gradient_norm": norm, **shares, "learning_rate": torch.tensor(rate)})
        return None

    def diverged(self, wait: bool = False) -> Diverged | None:
        """The non-finite step, to which `step` is reset; None if none is known. `wait` waits for all results."""
        found = self.finiteness.diverged(wait)
        self.step = self.step if found is None else found.step
        return found

    def _record(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        self._summed += 1

    # -- The loop ----------------------------------------------------------------------------------

    def run(
        self, stop: Callable[[], bool] = lambda: False, flush: Callable[[], dict[str, Any]] = dict
    ) -> Iterator[Event]:
        """Train from `self.step` to the end, yielding events.

        Args:
            stop: called before every step; if it returns True, a checkpoint is saved and training ends without
                `Finished`.
            flush: called before a checkpoint is written, to flush the records of earlier events to disk; what it
                returns becomes part of the checkpoint's state.
        """
        watch, steps = self.trial.observation, self.trial.training.steps
        seconds = 0.0
        while True:
            last = self.step == steps
            self._stage_of_step()
            if self.step != self._resumed_at:
                saves = self.folder is not None and (
                    (self.step % watch.checkpoint_every == 0 and self.step > 0) or last
                )
                if saves:
                    self.peers.check_equal_weights(list(self.trained.parameters()), self.step)
                if self.peers.leads:
                    yield from self._observed(last, saves, flush)
            if last:
                yield Finished(self.step, self.step * self.trial.training.batch_size)
                return
            if self.peers.any(stop()):
                if (diverged := self.diverged(wait=True)) is not None:
                    yield diverged
                elif self.peers.leads and self._is_unsaved():
                    self.save(told=False, **flush())
                return
            started = time.perf_counter()
            diverged = self.train_step()
            if diverged is None and self._is_recorded():
                diverged = self.diverged(wait=True)
            seconds += time.perf_counter() - started
            if diverged is not None:
                yield diverged
                return
            if self.step % watch.log_every == 0 or self.step == steps:
                yield self._logged(seconds)
                seconds = 0.0

    def _observed(self, last: bool, saves: bool, flush: Callable[[], dict[str, Any]]) -> Iterator[Event]:
        """Probe, draw pictures, and save a checkpoint, if they are due."""
        watch = self.trial.observation
        if self.step % self.trial.probe.every == 0 or last:
            yield self._probed()
        if (self.step % watch.images_every == 0 and self.step > 0) or last:
            yield Drew(self.step, draw_pictures(self.average, self.probe_set, self.stage.trial))
        if saves:
            started = time.perf_counter()
            self.save(**flush())
            yield Checkpointed(self.step, time.perf_counter() - started)

    def _is_recorded(self) -> bool:
        """Whether the present step is recorded, so that the host must know whether it was finite."""
        watch = self.trial.observation
        often = (watch.log_every, self.trial.probe.every, watch.images_every, watch.checkpoint_every)
        return self.step == self.trial.training.steps or any(self.step % every == 0 for every in often)

    def _is_unsaved(self) -> bool:
        every = self.trial.observation.checkpoint_every
        return self.folder is not None and self.step % every != 0 and self.step != self._resumed_at

    def _probed(self) -> Probed:
        started = time.perf_counter()
        # Probe batches have other shapes than training batches and would be compiled too.
        eager = torch.compiler.set_stance("force_eager") if self.trial.training.compile else contextlib.nullcontext()
        with eager, self._without_peers():
            metrics, spectra = self.probe_set.measure(self.network, self.target_encoder, self.step)
        return Probed(self.step, metrics, spectra, time.perf_counter() - started)

    @contextlib.contextmanager
    def _without_peers(self) -> Iterator[None]:
        """Context in which the leader computes on whole batches by itself."""
        networks = [network for network in (self.network, self.target_encoder) if network is not None]
        for network in networks:
            network.peers = ALONE
        try:
            yield
        finally:
            for network in networks:
                network.peers = self.peers

    def _logged(self, seconds: float) -> Logged:
        metrics = {f"train/{name}": float(total) / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        return Logged(self.step, metrics, seconds)
