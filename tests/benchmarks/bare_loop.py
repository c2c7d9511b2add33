"""The loop that one would write by hand: the same network, objective and optimiser in plain PyTorch.

What a trainer costs is its time over this loop's. Records, probes, checks, resumable random numbers and
phases are what a bare loop does without. Losses of reconstruction and diffusion are written out here;
a trial with more than those takes them from `dsd_lab.core.diffusion.objectives`, and the random numbers that they
need from `dsd_lab.core.training.batches`, so that the loop alone is compared.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dsd_lab.core.data.splits import Images
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.batches import draw_batch
from dsd_lab.core.training.clipping import clip_gradients, clipped_parts
from dsd_lab.core.training.optimiser import build_optimiser
from dsd_lab.core.training.schedule import learning_rate

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.core.model.network import Network
    from dsd_lab.core.training.trainer import Trainer
    from dsd_lab.specs.trial import Objective, Stage, Trial

_BATCHES_HELD = 4
"""Batches that a loop keeps of images which the trainer streams: its own images are in memory."""


_WRITTEN_OUT = {
    "target": ("live", "stop_gradient", "ema"),
    "noised": ("live", "detached"),
    "output": ("velocity", "clean"),
    "loss_space": ("velocity", "clean"),
    "weighting": ("none", "velocity"),
    "reconstruction": ("l1", "l2"),
}
"""Values of the objective's fields that `_written_out` has."""


def by_hand(trial: Trial) -> bool:
    """Whether the trial's losses are those that are written out here."""
    objective, latent, network = trial.objective, trial.latent, trial.network
    return not (
        trial.training.phases
        or trial.training.grad_accum_steps > 1
        or trial.training.noise_draws > 1
        or any(getattr(trial.auxiliary, name) > 0 for name in ("alignment", "representation", "classification"))
        or trial.augmentation.model_dump(exclude_defaults=True)
        or objective.perceptual_weight > 0
        or objective.anchor_weight > 0
        or objective.anchor_perceptual_weight > 0
        or objective.encoder_gradient < 1
        or objective.encoder_gradient_warmup > 0
        or objective.balance != "none"
        or latent.entropy_weight > 0
        or latent.decoder_noise > 0
        or latent.normaliser in ("kl", "fixed_noise")
        or latent.decoded == "raw"
        or network.layout == "separate"
    )


class BareLoop:
    """A training loop on copies of what a trainer has.

    Args:
        trainer: whose weights are copied as they stand, and whose images are read.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trial, self.device, self.by_hand = trainer.trial, trainer.device, by_hand(trainer.trial)
        self.network, self.average = copy.deepcopy(trainer.network), copy.deepcopy(trainer.average)
        self.more_averages = copy.deepcopy(trainer.more_averages)
        self.target_encoder = copy.deepcopy(trainer.target_encoder)
        self.auxiliaries = copy.deepcopy(trainer.auxiliaries)
        self.optimisers = build_optimiser(self.network, self.trial.optimiser, self.auxiliaries).parts
        self.precision = self.trial.training.precision
        self.parts = clipped_parts(self.network, self.auxiliaries)
        self.seed, self.data = trainer.seed, _in_memory(trainer.data, self.trial.training.batch_size)
        train = self.data.train
        assert isinstance(train, Images)
        self.pixels, self.labels = train.pixels.to(self.device), train.labels.to(self.device)
        self.order, self.taken, self.count = torch.randperm(len(self.labels)), 0, trainer.step
        self.enter(trainer.stage)

    def enter(self, stage: Stage) -> None:
        """Train with a stage's objective from here on."""
        self.stage = stage
        self.network.freeze(stage.frozen)

    def batch(self) -> tuple[Tensor, Draws]:
        """Images [B, C, H, W] in [-1, 1] and random numbers, from torch's own generator."""
        if not self.by_hand:
            return draw_batch(self.trial, self.seed, self.count, self.data, self.network, self.device)
        size = self.trial.training.batch_size
        if self.taken + size > len(self.order):
            self.order, self.taken = torch.randperm(len(self.labels)).repeat(1 + size // len(self.labels)), 0
        chosen = self.order[self.taken : self.taken + size].to(self.device)
        self.taken += size
        x, y = self.pixels[chosen].float() / 127.5 - 1, self.labels[chosen]
        spec, latents = self.trial.time, (size, self.network.tokens, self.network.latent_channels)
        if spec.distribution == "uniform":
            t = torch.rand(size, device=self.device)
        else:
            t = torch.sigmoid(spec.mean + spec.std * torch.randn(size, device=self.device))
        if spec.shift != 1:
            t = t / (t + spec.shift * (1 - t))
        dropped = torch.rand(size, device=self.device) < self.trial.labels.drop
        e = torch.randn(latents, device=self.device)
        return x, Draws(t, e, y.masked_fill(dropped, self.network.classes))

    def step(self, x: Tensor, draws: Draws) -> Tensor:
        """One step of the optimiser; returns the loss, which nothing waits for."""
        training, spec = self.trial.training, self.trial.optimiser
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss = x.new_zeros(())
        part = len(x) // training.grad_accum_steps
        for start in range(0, len(x), part):
            chosen = slice(start, start + part)
            its_draws = draws if part == len(x) else draws.of_images(chosen, len(x))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                its_loss = self._loss(x[chosen], its_draws) / training.grad_accum_steps
            its_loss.backward()
            loss = loss + its_loss.detach()
        clip_gradients(self.parts, spec.clip)
        rate = learning_rate(spec, self.count, training.steps)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()
        with torch.no_grad():
            for decay, average in {training.weight_ema: self.average, **self.more_averages}.items():
                self._follow(average, min(decay, (1 + self.count) / (10 + self.count)))
            if self.target_encoder is not None:
                self._follow(self.target_encoder, self._target_decay())
        self.count += 1
        return loss

    def _target_decay(self) -> float:
        objective = self.stage.trial.objective
        warmup = objective.target_warmup
        return objective.target_decay * (min(1.0, self.count / warmup) if warmup else 1.0)

    def _follow(self, average: Network, decay: float) -> None:
        torch._foreach_lerp_(list(average.parameters()), list(self.network.parameters()), 1 - decay)
        for ours, theirs in zip(average.buffers(), self.network.buffers(), strict=True):
            ours.copy_(theirs)

    def _loss(self, x: Tensor, draws: Draws) -> Tensor:
        if self.by_hand:
            return _written_out(self.network, self.target_encoder, x, draws, self.stage.trial.objective)
        return losses(self.network, self.target_encoder, x, draws, self.stage.trial, self.auxiliaries).total


class EagerLoop(BareLoop):
    """The bare loop as it is before anything is done for speed: float32, AdamW as torch has it by default, weights averaged one by one."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.network.attend_fused(True)
        if self.target_encoder is not None:
            self.target_encoder.attend_fused(True)
        self.precision, spec = "fp32", self.trial.optimiser
        if spec.kind == "adamw":
            groups = [
                {k: v for k, v in group.items() if k in ("params", "weight_decay", "scale")}
                for optimiser in self.optimisers
                for group in optimiser.param_groups
            ]
            self.optimisers = (torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2)),)

    def _follow(self, average: Network, decay: float) -> None:
        for weight, now in zip(average.parameters(), self.network.parameters(), strict=True):
            weight.mul_(decay).add_(now, alpha=1 - decay)
        for ours, theirs in zip(average.buffers(), self.network.buffers(), strict=True):
            ours.copy_(theirs)


def _in_memory(data: DataSet, batch: int) -> DataSet:
    train = data.train
    if not isinstance(train, Images):
        some = torch.arange(min(len(train), _BATCHES_HELD * batch))
        train = Images(train.bytes_at(some), train.labels[some])
    return replace(data, train=train)


def _written_out(network: Network, target: Network | None, x: Tensor, draws: Draws, spec: Objective) -> Tensor:
    """Reconstruction and diffusion loss of images x [B, C, H, W], weighted and added up.

    Raises:
        ValueError: the objective has a value that is not written out here; none is taken for another.
    """
    for name, known in _WRITTEN_OUT.items():
        if getattr(spec, name) not in known:
            raise ValueError(f"objective.{name}: {getattr(spec, name)!r} is not written out in the bare loop")
    z = network.encode(x).float()
    loss = z.new_zeros(())
    if spec.reconstruction_weight > 0:
        image = network.decode(z).float()
        error = functional.l1_loss(image, x) if spec.reconstruction == "l1" else functional.mse_loss(image, x)
        loss = loss + spec.reconstruction_weight * error
    if spec.diffusion_weight == 0:
        return loss
    if spec.target == "ema":
        assert target is not None
        with torch.no_grad():
            z2 = target.encode(x).float()
    else:
        z2 = z.detach() if spec.target == "stop_gradient" else z
    t = draws.t[:, None, None]
    z_t = t * (z.detach() if spec.noised == "detached" else z) + (1 - t) * draws.e
    out = network.denoise(z_t, draws.t, draws.y).float()
    if spec.loss_space == "velocity":
        v = out if spec.output == "velocity" else (out - z_t) / (1 - t).clamp_min(spec.clamp)
        return loss + spec.diffusion_weight * (v - (z2 - draws.e)).square().mean()
    error = ((out if spec.output == "clean" else z_t + (1 - t) * out) - z2).square()
    if spec.weighting == "velocity":
        error = error * (1 - t).clamp_min(spec.clamp) ** -2
    return loss + spec.diffusion_weight * error.mean()
