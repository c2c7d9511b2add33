"""Probes: metrics of a fixed set of held-out images, measured during training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsd_lab.core.diffusion import paths
from dsd_lab.core.diffusion.objectives import TARGETS, diffusion_loss, losses, output_of, predictions
from dsd_lab.core.observing import directions, latent_metrics
from dsd_lab.core.randomness import Draws, generator
from dsd_lab.specs.metrics import RANK_GAP

if TYPE_CHECKING:
    from dsd_lab.core.data import DataSet
    from dsd_lab.core.model.network import Network
    from dsd_lab.specs.trial import Trial

_DRAWS_PER_QUANTILE = 64
"""Draws per empirical quantile of the time distribution, which needs no closed form."""


class ProbeSet:
    """Fixed held-out images with fixed noise and times, the same for every trial of a data set.

    Times are evenly spaced in [0, 1], in random order, so that all bins of t have equal numbers.
    """

    def __init__(self, trial: Trial, data: DataSet, network: Network, device: torch.device) -> None:
        source = generator(0, "probe")
        count = min(trial.probe.images, len(data.holdout))
        chosen = torch.randperm(len(data.holdout), generator=source)[:count]
        self.x, self.y = data.holdout.at(chosen, device)
        self.t = ((torch.randperm(count, generator=source) + 0.5) / count).to(device)
        self.e = torch.randn(count, network.tokens, network.latent_channels, generator=source).to(device)
        self.stage = trial.stages()[0]
        """The current stage; its objective is measured."""
        self.training_t = self._training_times(min(trial.probe.scale_images, count)).to(device)
        self.patch_ranks = latent_metrics.patch_ranks(self.x, network.patch)

    @property
    def trial(self) -> Trial:
        return self.stage.trial

    def _training_times(self, count: int) -> Tensor:
        """Evenly spaced quantiles [count] of the training times' distribution, in random order."""
        source = generator(0, "probe/times")
        drawn = paths.draw_times(self.trial.time, _DRAWS_PER_QUANTILE * count, source).sort().values
        return drawn[_DRAWS_PER_QUANTILE // 2 :: _DRAWS_PER_QUANTILE][torch.randperm(count, generator=source)]

    def measure(
        self, network: Network, target_encoder: Network | None, step: int = 0
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics and covariance spectra of the networks after `step` steps; modes and gradients are restored."""
        networks = [network] if target_encoder is None else [network, target_encoder]
        modes = [(module, module.training) for part in networks for module in part.modules()]
        for part in networks:
            part.eval()
        try:
            with torch.no_grad():
                raw = network.encode_raw(self.x).float()
                z = network.normalise(raw)
                metrics, spectra = latent_metrics.latent_metrics(z, network.side)
                metrics["latent/viv/class"] = directions.class_viv(z, self.y, network.classes)
                location = raw[..., : network.latent_channels]  # means come before log variances
                before, spectra_before = latent_metrics.latent_metrics(location, network.side, "/pre")
                metrics |= before | self.patch_ranks | {"latent/probe_images": float(len(z))}
                spectra |= spectra_before
                if self.trial.objective.diffusion_weight > 0:
                    metrics |= self._rank_gaps(network, target_encoder, z)
                    differential, by_direction = self._rank_differential(network, target_encoder, z)
                    metrics |= differential
                    spectra |= by_direction
            if self.trial.objective.diffusion_weight > 0 and self.trial.probe.scale_images:
                gradients, slopes = self._scale_gradients(network, target_encoder, raw)
                metrics |= gradients
                spectra |= slopes
            if self.trial.probe.gradient_images:
                metrics |= self._interference(network, target_encoder, step)
        finally:
            for module, training in modes:
                module.training = training
        return metrics, spectra

    def _rank_gaps(self, network: Network, target_encoder: Network | None, z: Tensor) -> dict[str, float]:
        """Effective rank of the clean target minus that of the clean prediction, token level, in bins of t.

        Positive: the prediction has the lower rank, as in the rank differential mechanism (Zhuo et al.,
        arXiv 2303.02387). Bins with fewer than two images are left out.
        """
        spec = self.trial.objective
        z2 = TARGETS.bound(spec.target, spec)(z, self.x, target_encoder, None).float()
        z_t = paths.path_of(spec).noised(z, self.e, self.t)
        f, _ = output_of(spec)(network.denoise(z_t, self.t, self.y).float(), z_t, self.t, spec.clamp)
        bins = self.trial.probe.t_bins
        gaps = {}
        for b in range(bins):
            inside = (self.t * bins).long().clamp_max(bins - 1) == b
            if int(inside.sum()) >= 2:
                target, prediction = (latent_metrics.token_matrix(part[inside]) for part in (z2, f))
                gaps[f"{RANK_GAP}{b}"] = latent_metrics.effective_rank(target) - latent_metrics.effective_rank(
                    prediction
                )
        return gaps

    def _rank_differential(
        self, network: Network, target_encoder: Network | None, z: Tensor
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The rank differential where its theory has it: of all the training times at once (Zhuo et al., arXiv 2303.02387).

        There a predictor maps one view's representation to another's, and views are drawn as in training; here the
        view is z_t at a training time. `theory/rank_differential/token` is the target's effective rank minus that of
        the clean predictions, `/online` minus that of the encoder's own latents. The spectra
        `rank_differential/target/token` and `/prediction/token` are the two standard deviations along each principal
        direction of the target. Absent where `probe.scale_images` is below 2.
        """
        spec, count = self.trial.objective, len(self.training_t)
        if count < 2:
            return {}, {}
        z, draws = z[:count], Draws(self.training_t, self.e[:count], self.y[:count])
        z2 = TARGETS.bound(spec.target, spec)(z, self.x[:count], target_encoder, None).float()
        f, _ = predictions(network.denoise, z, draws, spec)
        online, target, prediction = map(latent_metrics.token_matrix, (z, z2, f))
        rank = latent_metrics.effective_rank(target)
        std, through = directions.along_directions(target, prediction)
        metrics = {
            "theory/rank_differential/token": rank - latent_metrics.effective_rank(prediction),
            "theory/rank_differential/online": rank - latent_metrics.effective_rank(online),
        }
        return metrics, {
            "rank_differential/target/token": std.tolist(),
            "rank_differential/prediction/token": through.tolist(),
        }

    def _scale_gradients(
        self, network: Network, target_encoder: Network | None, raw: Tensor
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Derivative of the unweighted diffusion loss with respect to the scale of the latents, at fixed weights.

        `theory/scale_gradient/token` is for one factor on all latents, through z_t and, if live, the target. Times are
        from the training distribution. The spectrum `scale_gradient/token` is for a factor on each principal direction,
        multiplied by the number of channels: the derivative of that direction's own loss. `scale_std/token` is the
        standard deviation along each direction. Factors act about the mean.

        With `/pre`, factors act before the normaliser, which is in training mode. The factor on all latents then scales
        the mean too, as a scale of the encoder's output does.
        """
        spec, count = self.trial.objective, len(self.training_t)
        draws = Draws(self.training_t, self.e[:count], self.y[:count])
        normaliser = copy.deepcopy(network.normaliser).train()  # copied to preserve the running statistics
        with torch.enable_grad():
            raw = raw[:count].detach().requires_grad_()
            z = normaliser(raw).float()
            z2 = TARGETS.bound(spec.target, spec)(z, self.x[:count], target_encoder, None).float()
            loss = diffusion_loss(network.denoise, z, z2, draws, spec)
            if not loss.requires_grad:
                return {}, {}
            found = torch.autograd.grad(loss, [z, raw], allow_unused=True)
        metrics, spectra = {}, {}
        channels = network.latent_channels
        for suffix, latents, gradient in (("", z, found[0]), ("/pre", raw, found[1])):
            if gradient is None:
                continue  # the loss does not depend on them: the metric is absent, not zero
            latents, gradient = latents[..., :channels].detach(), gradient[..., :channels]  # means only
            std, slope = directions.scale_gradient(latents, gradient)
            total = slope.sum() if suffix == "" else (gradient.double() * latents.double()).sum()
            metrics[f"theory/scale_gradient/token{suffix}"] = float(total)
            spectra[f"scale_gradient/token{suffix}"] = (channels * slope).tolist()
            spectra[f"scale_std/token{suffix}"] = std.tolist()
        return metrics, spectra

    def _interference(self, network: Network, target_encoder: Network | None, step: int) -> dict[str, float]:
        """Cosine and norm ratio (diffusion over reconstruction) of the gradients of the two weighted losses.

        `interference` is with respect to the latents z, `interference/encoder` to the encoder's weights. A metric is
        absent if one of the losses has no such gradient.
        """
        count = min(self.trial.probe.gradient_images, len(self.x))
        x, spec = self.x[:count], self.trial.objective
        draws = Draws(self.t[:count], self.e[:count], self.y[:count])
        with torch.enable_grad():
            found = losses(network, target_encoder, x, draws, self.trial, step=step)
            if not {"diffusion", "reconstruction"} <= found.terms.keys():
                return {}
            weighted = (
                spec.diffusion_weight * found.terms["diffusion"],
                spec.reconstruction_weight * found.terms["reconstruction"],
            )
            if not found.z.requires_grad:
                return {}
            weights = network.encoder_parameters()
            gradients = [
                torch.autograd.grad(loss, [found.z, *weights], retain_graph=i == 0, allow_unused=True)
                for i, loss in enumerate(weighted)
            ]
        metrics = {}
        for name, part in (("interference", slice(0, 1)), ("interference/encoder", slice(1, None))):
            pair = [_flat(gradient[part], [found.z, *weights][part]) for gradient in gradients]
            if pair[0] is None or pair[1] is None:
                continue
            norms = [float(g.norm()) for g in pair if g is not None]
            if min(norms) > 0:
                metrics[f"{name}/cosine"] = float(pair[0] @ pair[1]) / (norms[0] * norms[1])
            if norms[1] > 0:
                metrics[f"{name}/norm_ratio"] = norms[0] / norms[1]
        return metrics


def _flat(gradients: tuple[Tensor | None, ...], like: list[Tensor]) -> Tensor | None:
    if all(g is None for g in gradients):
        return None
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(gradients, like, strict=True)]
    ).double()
