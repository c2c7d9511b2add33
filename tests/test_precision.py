"""Numbers under bfloat16 and other numbers of threads: what may be rounded, and what stays as it is."""

import pytest
import torch

from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.training.trainer import Trainer

CPU = torch.device("cpu")


def rounded(x):
    return bool((x == x.bfloat16().float()).all())


@pytest.mark.parametrize("normaliser", ["none", "layernorm", "layernorm_affine", "batchnorm", "fixed_noise", "kl"])
def test_latents_and_predictions_are_not_rounded_under_bfloat16(tiny_trial, digits, normaliser):
    trial = tiny_trial(
        latent={"normaliser": normaliser},
        objective={"target": "ema", "output": "clean", "loss_space": "clean"},
        training={"precision": "bf16"},
    )
    trainer = Trainer(trial, 0, digits, CPU)
    for _ in range(2):  # adaLN starts at zero
        trainer.train_step()
    network, seen = trainer.network, {}

    def watch(module, name, entering=False):
        def hook(_, given, out):
            seen.setdefault(name, given[0] if entering else out)

        module.register_forward_hook(hook)

    for role, head in network.heads.items():
        watch(head, role)
    watch(network.noisy_in, "into the denoiser", entering=True)
    watch(network.latent_in, "into the decoder", entering=True)
    watch(network.blocks[0].mlp, "inside a block")
    x, draws = trainer.draw(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(network, trainer.target_encoder, x, draws, trial, trainer.auxiliaries)
    assert seen.pop("inside a block").dtype == torch.bfloat16
    for name, value in {**seen, "z": found.z}.items():
        assert value.dtype == torch.float32 and not rounded(value), name
    assert all(term.dtype == torch.float32 for term in found.terms.values()) and found.total.dtype == torch.float32


def test_shrunk_latents_keep_their_signal_under_bfloat16(tiny_trial, digits):
    trial = tiny_trial(training={"precision": "bf16"})
    network = Trainer(trial, 0, digits, CPU).network
    z = 1e-2 * torch.randn(4, network.tokens, network.latent_channels, generator=torch.Generator().manual_seed(0))
    e = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    given = []
    network.noisy_in.register_forward_hook(lambda m, i, out: given.append(out))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for latents in (z, torch.zeros_like(z)):
            network.denoise(0.5 * latents + 0.5 * e, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long))
    exact = (0.5 * z) @ network.noisy_in.weight.detach().T
    assert float((given[0] - given[1] - exact).norm() / exact.norm()) < 1e-3


def test_threads_change_no_draw_and_losses_by_rounding_alone(tiny_trial, digits):
    trial = tiny_trial(network={"width": 64}, training={"batch_size": 32})
    before = torch.get_num_threads()
    found = {}
    try:
        for count, again in ((1, 0), (2, 0), (2, 1)):
            torch.set_num_threads(count)
            trainer = Trainer(trial, 0, digits, CPU)
            x, draws = trainer.draw(0)
            loss = trainer.gradients(x, draws)["loss"]
            gradient = torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])
            found[count, again] = [x, draws.t, draws.e, draws.y], loss, gradient
    finally:
        torch.set_num_threads(before)
    one, two, repeated = found.values()
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert float(one[1]) == pytest.approx(float(two[1]), rel=1e-5)
    assert float((one[2] - two[2]).norm() / one[2].norm()) < 1e-4
    assert torch.equal(two[1], repeated[1]) and torch.equal(two[2], repeated[2])
