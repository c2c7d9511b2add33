"""Augmentation: what is drawn, how often, for whom, and that nothing else is drawn differently."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dsd_lab.core.diffusion.objectives import losses
from dsd_lab.core.model.network import Network
from dsd_lab.core.training.augmentation import augmented, flipped, hidden_tokens, shifted_crop
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.specs.auxiliary import Augmentation
from dsd_lab.specs.trial import Trial

CPU = torch.device("cpu")
ALL = {"flip": 0.5, "crop": 2, "mask": 0.4}


def pictures(count=4, channels=2, size=6):
    return torch.arange(count * channels * size * size, dtype=torch.float32).reshape(count, channels, size, size)


def test_images_are_mirrored_one_by_one():
    x = pictures()
    found = flipped(x, torch.tensor([True, False, False, True]))
    assert torch.equal(found[1:3], x[1:3])
    assert torch.equal(found[0], x[0, :, :, torch.arange(5, -1, -1)]) and torch.equal(found[3], x[3].flip(2))


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_a_crop_is_that_of_the_reflect_padded_image(down, right):
    x = pictures()
    padded = torch.nn.functional.pad(x, (5, 5, 5, 5), mode="reflect")
    found = shifted_crop(x, torch.tensor([[0, 0], [down, right], [right, down], [-down, right]]))
    assert torch.equal(found[0], x[0])
    for image, (row, column) in enumerate([(down, right), (right, down), (-down, right)], 1):
        assert torch.equal(found[image], padded[image, :, 5 + row : 11 + row, 5 + column : 11 + column])


@pytest.mark.parametrize("flip", [0.2, 0.5, 1.0])
def test_images_are_flipped_at_the_rate_of_the_spec(flip):
    x = pictures(4000, 1, 2)
    share = (augmented(x, Augmentation(flip=flip), 0, 0) != x).flatten(1).any(1).double().mean()
    assert float(share) == pytest.approx(flip, abs=0.03)


def test_shifts_are_uniform_over_all_places_along_both_axes():
    rows, columns = (torch.arange(9.0).expand(1, 1, 9, 9).clone() for _ in range(2))
    rows = rows.transpose(2, 3)
    spec = Augmentation(crop=2)
    found = [augmented(part.expand(5000, 1, 9, 9), spec, 3, 1)[:, 0, 4, 4] - 4 for part in (rows, columns)]
    for shift in found:
        counts = [float((shift == value).double().mean()) for value in (-2, -1, 0, 1, 2)]
        assert counts == pytest.approx([0.2] * 5, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack(found))[0, 1])) < 0.05


@pytest.mark.parametrize(("mask", "tokens"), [(0.3, 4), (0.5, 49), (0.1, 4), (0.95, 4)])
def test_the_fraction_of_hidden_tokens_is_the_specs_and_no_image_strays_by_a_whole_token(mask, tokens):
    hidden = hidden_tokens(Augmentation(mask=mask), 8000, tokens, 0, 0, CPU)
    counts = hidden.sum(1).double()
    assert float(hidden.double().mean()) == pytest.approx(mask, abs=0.01)
    assert float((counts - mask * tokens).abs().max()) < 1
    assert hidden.double().mean(0).tolist() == pytest.approx([mask] * tokens, abs=0.03)


def test_without_augmentation_images_are_the_same_object_and_nothing_is_hidden():
    x = pictures()
    assert augmented(x, Augmentation(), 0, 0) is x
    assert hidden_tokens(Augmentation(), 4, 9, 0, 0, CPU) is None


def test_what_is_drawn_is_a_function_of_seed_and_step_and_changes_no_other_number(tiny_trial, digits):
    trial = tiny_trial(augmentation=ALL)
    one, same, other = (Trainer(trial, seed, digits, CPU) for seed in (0, 0, 1))
    one.draw(0)
    (x, draws), (x_same, draws_same) = one.draw(3), same.draw(3)
    assert torch.equal(x, x_same) and torch.equal(draws.mask, draws_same.mask)
    for x_else, draws_else in (one.draw(4), other.draw(3)):
        assert not torch.equal(x, x_else) and not torch.equal(draws.mask, draws_else.mask)
    plain_x, plain = Trainer(tiny_trial(), 0, digits, CPU).draw(3)
    assert not torch.equal(plain_x, x) and plain.mask is None
    assert all(torch.equal(getattr(plain, name), getattr(draws, name)) for name in ("t", "e", "y"))


def test_each_kind_draws_the_same_alone_as_with_the_others(digits):
    whole = Augmentation.model_validate(ALL)
    flip, crop, mask = (Augmentation.model_validate({kind: value}) for kind, value in ALL.items())
    x, _ = digits.train.at(torch.arange(64), CPU)
    assert torch.equal(hidden_tokens(mask, 64, 9, 0, 5, CPU), hidden_tokens(whole, 64, 9, 0, 5, CPU))
    assert torch.equal(augmented(augmented(x, flip, 0, 5), crop, 0, 5), augmented(x, whole, 0, 5))


def test_a_shift_as_large_as_the_image_is_refused_with_both_numbers():
    with pytest.raises(ValidationError, match=r"augmentation.crop: 8 is not below network.image_size \(8\)"):
        Trial.model_validate({"augmentation": {"crop": 8}})
    assert Trial.model_validate({"augmentation": {"crop": 7}}).augmentation.crop == 7


@pytest.mark.parametrize("layout", ["modular", "coupled"])
def test_a_hidden_token_keeps_no_trace_of_its_pixels_and_a_shown_one_does(tiny_trial, layout):
    network = Network(tiny_trial(network={"layout": layout}), 1, 10)
    x, hidden = torch.randn(2, 1, 8, 8), torch.tensor([[True, False, False, False], [False] * 4])
    other = x.clone()
    other[:, :, :4, :4] += 1  # the pixels of the first token
    before, after = network.encode_raw(x, hidden), network.encode_raw(other, hidden)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    assert torch.equal(network.encode_raw(x, torch.zeros(2, 4, dtype=torch.bool)), network.encode_raw(x))


def test_the_mask_hides_tokens_from_the_online_encoder_only(tiny_trial, digits, monkeypatch):
    trainer = Trainer(tiny_trial(augmentation={"mask": 0.5}), 0, digits, CPU)
    for _ in range(2):  # away from the start, where a block is the identity and both encoders are equal
        trainer.train_step()
    x, draws = trainer.draw(2)
    assert 0 < int(draws.mask.sum()) < draws.mask.numel()
    shown = dataclasses.replace(draws, mask=None)
    seen = {}

    def watch(name, encoder):
        real = encoder.encode_raw

        def encode_raw(images, *more, **named):
            seen[name] = real(images, *more, **named)
            return seen[name]

        monkeypatch.setattr(encoder, "encode_raw", encode_raw)

    watch("online", trainer.network)
    watch("target", trainer.target_encoder)
    found = {}
    for name, numbers in (("masked", draws), ("shown", shown)):
        found[name] = losses(trainer.network, trainer.target_encoder, x, numbers, trainer.trial), dict(seen)
    assert torch.equal(found["masked"][1]["target"], found["shown"][1]["target"])
    assert not torch.allclose(found["masked"][1]["online"], found["shown"][1]["online"])
    z = found["masked"][0].z
    expected = torch.nn.functional.mse_loss(trainer.network.decode(z), x)  # the whole image is reconstructed
    assert torch.equal(found["masked"][0].terms["reconstruction"], expected)


def test_probes_see_whole_images(tiny_trial, digits):
    plain, masked = (Trainer(tiny_trial(augmentation=a), 0, digits, CPU) for a in ({}, ALL))
    measured = [trainer.probe_set.measure(trainer.network, trainer.target_encoder)[0] for trainer in (plain, masked)]
    assert measured[0] == measured[1]


def test_training_with_augmentation_resumes_to_the_same_bits(tiny_trial, digits, tmp_path):
    trial = tiny_trial(augmentation=ALL, training={"steps": 4}, observation={"checkpoint_every": 2})
    whole = Trainer(trial, 0, digits, CPU, tmp_path)
    list(whole.run())
    max(tmp_path.glob("step-*")).rename(tmp_path / "left-out")
    again = Trainer(trial, 0, digits, CPU, tmp_path)
    assert again.resume() and again.step == 2
    list(again.run())
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), whole.network.parameters(), strict=True))
