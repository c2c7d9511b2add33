"""Balance by gradient norms: the norms that result, what is left alone, and training with everything on."""

import dataclasses

import pytest
import torch

from dsd_lab.core.diffusion.balance import BALANCES, DELTA, MAX_FACTOR
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.peers import ALONE
from dsd_lab.core.training.checkpoints import tensors_of
from dsd_lab.core.training.events import Checkpointed, Logged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.auxiliary import Auxiliary

CPU = torch.device("cpu")
PERCEPTUAL = {"perceptual_weight": 0.3, "perceptual_backbone": "test_resnet", "perceptual_weights": "random"}
AUXILIARY = {"alignment": 0.5, "alignment_from": "denoise", "representation": 0.2, "classification": 2.0}
WEIGHTS = {"diffusion": 0.7, "perceptual": 0.3, "alignment": 0.5, "representation": 0.2, "classification": 2.0}


def built(tiny_trial, digits, objective=None, auxiliary=None, **sections):
    objective = {"diffusion_weight": 0.7, "balance": "gradient_norm", **PERCEPTUAL} | (objective or {})
    trial = tiny_trial(objective=objective, auxiliary=AUXILIARY if auxiliary is None else auxiliary, **sections)
    trainer = Trainer(trial, 0, digits, CPU)
    trainer.train_step()
    return trainer, *trainer.draw(1)


def found_of(trainer, x, draws, trial=None):
    return losses(trainer.network, trainer.target_encoder, x, draws, trial or trainer.trial, trainer.auxiliaries)


def gradient(term, z):
    return torch.autograd.grad(term, z, retain_graph=True, allow_unused=True)[0]


@pytest.mark.parametrize("reconstruction_weight", [1.0, 4.0])
def test_each_terms_gradient_at_the_latents_gets_the_norm_of_the_reconstructions_times_its_weight(
    tiny_trial, digits, reconstruction_weight
):
    found = found_of(*built(tiny_trial, digits, {"reconstruction_weight": reconstruction_weight}))
    norm = float(gradient(found.terms["reconstruction"], found.z).norm())
    assert found.multipliers.keys() == {"diffusion", "perceptual", "alignment", "classification"}
    for name, multiplier in found.multipliers.items():
        assert not multiplier.requires_grad
        scaled = multiplier * gradient(found.terms[name], found.z)
        assert float(scaled.norm()) == pytest.approx(WEIGHTS[name] * norm, rel=1e-2)  # within VQGAN's delta
    assert any(float(m) != pytest.approx(WEIGHTS[n], rel=0.05) for n, m in found.multipliers.items())


def test_the_total_is_the_sum_with_the_multipliers_as_constants_and_others_keep_their_weight(tiny_trial, digits):
    latent = {"normaliser": "kl", "kl_weight": 0.1, "entropy_weight": 0.05}
    trainer, x, draws = built(tiny_trial, digits, latent=latent)
    found = found_of(trainer, x, draws)
    weights = {"reconstruction": 1.0, "kl": 0.1, "entropy": -0.05, "representation": 0.2} | found.multipliers
    assert weights.keys() == found.terms.keys()
    expected = sum(weight * found.terms[name] for name, weight in weights.items())
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = trainer.network.patch_in.weight
    ours, theirs = (gradient(total, weight) for total in (found.total, expected))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-8)


def test_a_term_whose_gradient_does_not_reach_the_latents_is_left_as_it_is(tiny_trial, digits):
    objective = {"noised": "detached", "target": "stop_gradient", "perceptual_weight": 0.0}
    auxiliary = {"alignment": 0.5, "representation": 0.2, "classification": 1.0, "classification_from": "encode"}
    trainer, x, draws = built(tiny_trial, digits, objective, auxiliary)
    found = found_of(trainer, x, draws)
    plain = trainer.trial.model_copy(update={"objective": trainer.trial.objective.model_copy(update={"balance": "none"})})  # fmt: skip
    assert found.multipliers == {}
    assert torch.equal(found.total, found_of(trainer, x, draws, plain).total)


def test_without_a_reconstruction_loss_nothing_is_balanced(tiny_trial, digits):
    trainer, x, draws = built(tiny_trial, digits, {"reconstruction_weight": 0.0})
    assert found_of(trainer, x, draws).multipliers == {}


def test_factors_are_vqgans_with_its_delta_and_its_largest():
    z = torch.ones(4, requires_grad=True)
    reconstruction = (3 * z).sum()
    terms = {"weaker": (1e-9 * z).sum(), "stronger": (300 * z).sum(), "zero": (0 * z).sum(), "elsewhere": torch.ones(1)}
    factors = BALANCES["gradient_norm"](reconstruction, terms, z, ALONE)
    assert factors.keys() == {"weaker", "stronger", "zero"}
    assert float(factors["weaker"]) == MAX_FACTOR and float(factors["zero"]) == 1
    assert float(factors["stronger"]) == pytest.approx(6 / (600 + DELTA))
    assert BALANCES["none"](reconstruction, terms, z, ALONE) == {}
    assert BALANCES["gradient_norm"](reconstruction, terms, z.detach(), ALONE) == {}


def test_what_terms_are_multiplied_by_is_logged_where_they_are_balanced(tiny_trial, digits):
    for balance in ("none", "gradient_norm"):
        trial = tiny_trial(objective={"balance": balance, "noised": "live"}, auxiliary={"representation": 0.1})
        logged = [e.metrics for e in Trainer(trial, 0, digits, CPU).run() if isinstance(e, Logged)]
        for metrics in logged:
            assert ("train/balance/diffusion" in metrics) == (balance == "gradient_norm")
            assert "train/balance/representation" not in metrics and "train/representation" in metrics


def test_a_loss_that_is_not_finite_still_ends_as_divergence(tiny_trial, digits):
    trainer, *_ = built(tiny_trial, digits)
    with torch.no_grad():
        trainer.network.heads["decode"].out.weight.fill_(float("inf"))
    diverged = trainer.train_step()
    assert diverged is not None and "loss" in diverged.reason


EVERYTHING = {
    "augmentation": {"flip": 0.5, "crop": 1, "mask": 0.3},
    "auxiliary": AUXILIARY,
    "objective": {"balance": "gradient_norm", "target_warmup": 3, **PERCEPTUAL},
    "latent": {"normaliser": "fixed_noise", "decoder_noise": 0.1, "entropy_weight": 0.01},
}


TIMM = {"alignment_to": "test_vit", "alignment_weights": "random"}


@pytest.mark.parametrize(("layout", "to"), [("modular", {}), pytest.param("coupled", TIMM, marks=pytest.mark.slow)])
def test_with_everything_on_a_run_resumes_at_every_step_to_the_same_bits(tiny_trial, digits, tmp_path, layout, to):
    watched = {"checkpoint_every": 1, "log_every": 2, "images_every": 100}
    network = {"layout": layout}
    sections = EVERYTHING | {"auxiliary": AUXILIARY | to}
    trial = tiny_trial(**sections, network=network, training={"steps": 3}, probe={"every": 100}, observation=watched)
    floats = {name for name, f in Auxiliary.model_fields.items() if f.annotation is float}
    assert all(getattr(trial.auxiliary, name) for name in floats - {"alignment_encoder"})  # of the denoiser's tokens

    def state(trainer):
        parts = {"trained": trainer.trained, "average": trainer.average, "target": trainer.target_encoder}
        return {k: v for name, part in parts.items() for k, v in tensors_of(part, name).items()}

    def logged(events):
        return [dataclasses.replace(e, seconds=0.0) for e in events if isinstance(e, Logged)]

    whole = Trainer(trial, 0, digits, CPU)
    records = logged(whole.run())
    assert len(records) == 2
    for step in range(1, 4):
        first = Trainer(trial, 0, digits, CPU, tmp_path / str(step))
        run, before = first.run(), []
        while not isinstance(event := next(run), Checkpointed) or event.step < step:
            before.append(event)
        run.close()
        again = Trainer(trial, 0, digits, CPU, tmp_path / str(step))
        assert again.resume() and again.step == step
        assert logged(before) + logged(again.run()) == records
        ours, theirs = state(again), state(whole)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
