"""The perceptual reconstruction loss: its formula, its gradient, and what it is given."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import interpolate

from dsd_lab.core.diffusion.auxiliary import Auxiliaries
from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.network import Network
from dsd_lab.core.model.perceptual import Perceptual
from dsd_lab.core.randomness import Draws
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.flops import count_shape
from dsd_lab.specs.sources import NamedBackbone
from dsd_lab.specs.trial import Trial

CPU = torch.device("cpu")
ON = {"perceptual_weight": 0.5, "perceptual_backbone": "test_resnet", "perceptual_weights": "random"}


def build(name="test_resnet", size=16):
    return Perceptual(NamedBackbone("a.model", name, "a.weights", "random", "a.model"), size, CPU)


def pair(channels=1, size=16):
    source = torch.Generator().manual_seed(0)
    return (torch.rand(2, 2, channels, size, size, generator=source) * 2 - 1).unbind()


def test_the_loss_is_the_mean_over_stages_of_mean_squared_differences_of_features():
    loss, (a, b) = build(), pair()
    of_a, of_b = (loss.backbone.features(x) for x in (a, b))
    assert len(of_a) > 1
    expected = sum(float((p - q).square().mean()) for p, q in zip(of_a, of_b, strict=True)) / len(of_a)
    assert float(loss(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(a, a)) == 0 < float(loss(a, b))


@pytest.mark.parametrize(("name", "size", "pixels"), [("test_resnet", 8, 32), ("test_resnet", 64, 64), ("test_resnet", 65, 96), ("test_vit", 28, 32)])  # fmt: skip
def test_small_images_are_scaled_up_to_the_models_reduction_and_others_are_left_alone(name, size, pixels):
    loss, (a, _) = build(name, size), pair(3, size)
    assert loss.backbone.pixels == pixels
    scaled = interpolate(a, size=(pixels, pixels), mode="bilinear", antialias=True)
    found = zip(loss.backbone.features(a), loss.backbone.features(scaled), strict=True)
    assert all(torch.allclose(p, q, atol=1e-4) for p, q in found)


def test_the_gradient_is_a_finite_difference_and_is_the_decoded_images_alone(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    loss, (a, b) = build(), (x.double() for x in pair())
    loss.backbone.model.double()
    a.requires_grad_(), b.requires_grad_()
    gradient, of_real = torch.autograd.grad(loss(a, b), (a, b), allow_unused=True)
    assert of_real is None and float(gradient.norm()) > 0
    direction = torch.randn(a.shape, generator=torch.manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        numeric = (loss(a + 1e-7 * direction, b) - loss(a - 1e-7 * direction, b)) / 2e-7
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


@pytest.mark.parametrize("pixels", [0.0, 1.0])
def test_it_is_a_term_of_the_decoded_image_with_its_weight_with_or_without_the_pixel_loss(tiny_trial, digits, pixels):
    trial = tiny_trial(objective=ON | {"reconstruction_weight": pixels}, latent={"decoder_noise": 0.5})
    torch.manual_seed(0)
    network = Network(trial, 1, 10)
    auxiliaries = Auxiliaries(trial, network, 10, CPU)
    x, y = digits.train.at(torch.arange(4), CPU)
    draws = Draws(torch.linspace(0.1, 0.9, 4), torch.randn(4, 4, 8), y, torch.randn(4, 4, 8))
    found = losses(network, network, x, draws, trial, auxiliaries)
    image = network.decode(network.encode(x) + 0.5 * draws.decoder_e)
    terms = {name: term.item() for name, term in found.terms.items()}
    assert terms["perceptual"] == pytest.approx(auxiliaries.perceptual(image, x).item(), rel=1e-5)
    assert terms.keys() == {"perceptual", "diffusion"} | ({"reconstruction"} if pixels else set())
    expected = terms["diffusion"] + 0.5 * terms["perceptual"] + pixels * terms.get("reconstruction", 0)
    assert found.total.item() == pytest.approx(expected, rel=1e-6)


def test_training_lowers_it_and_leaves_the_model_as_it_was(tiny_trial, digits):
    objective = ON | {"diffusion_weight": 0.0, "reconstruction_weight": 0.0}
    trainer = Trainer(tiny_trial(objective=objective, training={"steps": 12}, optimiser={"lr": 3e-3}), 0, digits, CPU)
    assert list(trainer.auxiliaries.parameters()) == [] and trainer.auxiliaries.state_dict() == {}
    model = trainer.auxiliaries.perceptual.backbone.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, _ = trainer.draw(0)

    def distance():
        with torch.no_grad():
            return float(trainer.auxiliaries.perceptual(trainer.network.decode(trainer.network.encode(x)), x))

    start = distance()
    for _ in range(12):
        trainer.train_step()
    assert distance() < 0.9 * start
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_is_counted_as_frozen_weights_and_as_more_work(tiny_trial):
    plain, with_it = (count_shape(tiny_trial(objective=o), 1, 10) for o in ({}, ON))
    assert with_it["params"] == plain["params"] and with_it["auxiliary"] == 0
    assert with_it["frozen"] == build().backbone.parameters() > plain["frozen"] == 0
    assert with_it["flops_per_image"] > plain["flops_per_image"]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"perceptual_weight": 1.0}, "perceptual_backbone: perceptual_weight needs the name of a timm model"),
        ({"perceptual_weight": 1.0, "perceptual_backbone": "vgg16"}, "perceptual_weights: .*vgg16 needs a file"),
        ({"reconstruction_weight": 0.0, "diffusion_weight": 0.0}, "nothing would be trained"),
    ],
)
def test_a_loss_that_cannot_be_had_is_refused(objective, said):
    with pytest.raises(ValidationError, match=said):
        Trial.model_validate({"objective": objective})
