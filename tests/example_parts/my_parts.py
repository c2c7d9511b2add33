"""One part of every kind, as a user writes them: nothing here is in the package."""

import torch
from sklearn.datasets import load_digits

from dsd_lab.parts import (
    AUXILIARIES,
    BLOCKS,
    DATA_SOURCES,
    LATENT_METRICS,
    LOSS_SPACES,
    NORMALISERS,
    OUTPUTS,
    PATHS,
    RECONSTRUCTIONS,
    REGULARISERS,
    SAMPLE_METRICS,
    SAMPLERS,
    TARGETS,
    TIME_DISTRIBUTIONS,
    WEIGHTINGS,
    Auxiliary,
    Block,
    Images,
    Normaliser,
    Options,
    Path,
    data_set,
    split,
)


class HuberOptions(Options):
    """Options of `huber`."""

    delta: float = 1.0
    """Error from which the loss is linear."""


@RECONSTRUCTIONS.add("huber", options=HuberOptions)
def huber(image, x, options):
    """Huber's loss: squared near zero, linear beyond delta."""
    return torch.nn.functional.huber_loss(image, x, delta=options.delta)


@NORMALISERS.add("squash")
class Squash(Normaliser):
    """tanh: latents between -1 and 1."""

    def forward(self, raw, noise=None):
        return torch.tanh(raw)


@TARGETS.add("half_stopped", live=True)
def half_stopped(z, x, target_encoder, noise=None, hidden_states=None):
    """Half of the gradient reaches the encoder through the target."""
    return 0.5 * z + 0.5 * z.detach()


@PATHS.add("trigonometric")
class Trigonometric(Path):
    """z_t = sin(pi t / 2) z + cos(pi t / 2) e: the variance of z_t stays that of z where that is 1."""

    def alpha(self, t):
        return torch.sin(torch.pi / 2 * t)

    def sigma(self, t):
        return torch.cos(torch.pi / 2 * t)

    def alpha_slope(self, t):
        return torch.pi / 2 * torch.cos(torch.pi / 2 * t)

    def sigma_slope(self, t):
        return -torch.pi / 2 * torch.sin(torch.pi / 2 * t)


@BLOCKS.add("gated_mlp")
class GatedMlp(Block):
    """An MLP of each token with a gate from the condition; no attention."""

    hidden = ("mlp",)

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
        )
        self.gate = torch.nn.Linear(width, width)

    def forward(self, tokens, condition):
        return tokens + self.gate(condition)[:, None] * self.mlp(tokens)


@OUTPUTS.add("noise")
def noise_prediction(out, z_t, t, clamp, path):
    """The network predicts the noise e."""
    alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
    clean = (z_t - sigma * out) / alpha.clamp_min(clamp)
    return clean, path.velocity(clean, out, t)


@LOSS_SPACES.add("l1_clean")
def l1_clean(f, v, z2, e, t, spec):
    """Mean absolute error of the clean prediction."""
    return (f - z2).abs().mean()


@WEIGHTINGS.add("linear")
def linear(t, clamp):
    """w(t) = t."""
    return t


@TIME_DISTRIBUTIONS.add("squared")
def squared(spec, count, generator):
    """Square of a uniform number: more noise."""
    return torch.rand(count, generator=generator, device=generator.device) ** 2


@REGULARISERS.add("unit_scale")
def unit_scale(z):
    """Squared difference of the latents' second moment from 1."""
    return (z.square().mean() - 1).square()


@AUXILIARIES.add("mean_pixel")
class MeanPixel(Auxiliary):
    """Squared error of a linear prediction of an image's mean pixel from its mean latent."""

    def __init__(self, trial, network, classes, device):
        super().__init__(trial, network, classes, device)
        self.head = torch.nn.Linear(network.latent_channels, 1)

    def forward(self, seen):
        wanted = seen.x.flatten(1).mean(1, keepdim=True)
        return torch.nn.functional.mse_loss(self.head(seen.z.mean(1)), wanted)


@SAMPLERS.add("midpoint")
def midpoint(velocity, z, solver):
    """Midpoint rule: two calls of the network per step."""
    step = 1 / solver.steps
    for i in range(solver.steps):
        t = torch.full((len(z),), i * step, device=z.device)
        middle = z + 0.5 * step * velocity(z, t)
        z = z + step * velocity(middle, t + 0.5 * step)
    return z


@DATA_SOURCES.add("bright_digits")
def bright_digits(spec, cache):
    """scikit-learn's digits with inverted grey levels."""
    found = load_digits()
    pixels = torch.from_numpy(255 - found.images * (255 / 16)).to(torch.uint8)
    return data_set(*split(Images(pixels[:, None], torch.from_numpy(found.target).long()), spec.holdout))


@LATENT_METRICS.add("largest", label="largest latent", unit="std", digits=2)
def largest(z, side):
    """Largest absolute value."""
    return float(z.abs().max())


@SAMPLE_METRICS.add("brightness", label="brightness gap", digits=1)
def brightness(samples, labels, real):
    """Mean grey level of samples minus that of held-out images."""
    return float(samples.double().mean() - real.double().mean())
