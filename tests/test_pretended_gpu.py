"""The code path of a GPU, on machines without one: no step waits for it, and nothing mixes devices.

Numbers are not looked at here, nor is the backward pass; `test_finiteness.py` has what runs on a real one.
"""

import pytest
import torch
from pretended_gpu import GPU, pretended_gpu, without_numbers
from test_experiments import VARIANTS, small

from dsd_lab.core.data.splits import Split
from dsd_lab.core.diffusion.samplers import SAMPLERS, Interval
from dsd_lab.core.training import checkpoints
from dsd_lab.core.training.events import Drew, Finished, Logged, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.evaluation import extractor, features
from dsd_lab.evaluation.reconstruction import latents, reconstructions
from dsd_lab.evaluation.sampling import sample_images
from dsd_lab.specs.trial import Trial

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")]


def covering():
    """Variants of which each makes a choice that none before it makes; together they make all that are shipped."""
    made, chosen = set(), []
    for name, fields in VARIANTS.items():
        sections = small(fields).model_dump(exclude={"data", "evaluate", "observation", "resources"})
        choices = {
            (section, key, value if isinstance(value, str | bool) else bool(value))
            for section, values in sections.items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        if choices - made:
            chosen.append(name)
            made |= choices
    return chosen


MORE = {
    "entropy": {"latent": {"entropy_weight": 0.1}},
    "kl": {"latent": {"normaliser": "kl"}},
    "fixed_noise": {"latent": {"normaliser": "fixed_noise"}},
    "activation_checkpointing": {"training": {"activation_checkpointing": True, "precision": "bf16"}},
    "noise_draws": {"training": {"noise_draws": 2, "grad_accum_steps": 2, "extra_ema_decays": [0.5]}},
    "perceptual": {
        "objective": {
            "perceptual_weight": 0.5,
            "perceptual_backbone": "test_resnet",
            "perceptual_weights": "random",
        }
    },
    "vision": {"auxiliary": {"alignment": 0.5, "alignment_to": "test_vit", "alignment_weights": "random"}},
}
"""Choices that no shipped variant makes."""


def trial_of(name):
    """A shipped variant made small, or one of `MORE`."""
    return small(VARIANTS[name] if name in VARIANTS else Trial.model_validate(MORE[name]))


def trainer_of(name, digits, **training):
    """On the pretended GPU; within `pretended_gpu`."""
    values = trial_of(name).model_dump()
    values["training"] |= training
    trial = Trial.model_validate(values | {"resources": {"gpus": 1.0}})
    return Trainer(trial, 0, without_numbers(digits), GPU)


def watched(trainer, gpu):
    """A list that has for each of the trainer's steps where it waited, as it goes."""
    step, waits = trainer.train_step, []

    def train_step():
        gpu.waits.clear()
        found = step()
        waits.append(list(gpu.waits))
        return found

    trainer.train_step = train_step
    return waits


@pytest.mark.parametrize("name", [*covering(), *MORE])
def test_no_step_of_a_variant_waits_for_a_gpu_and_nothing_of_its_training_mixes_devices(name, digits):
    with pretended_gpu() as gpu:
        trainer = trainer_of(name, digits)
        waits = watched(trainer, gpu)
        told = [type(event) for event in trainer.run()]
    assert told[0] is Probed and told[-1] is Finished and {Drew, Logged} <= set(told)
    assert len(waits) == 3
    assert all("splits.py" in wait for wait in waits[0]), waits[0]
    assert waits[1:] == [[], []]


def test_a_trial_is_resumed_onto_a_gpu(digits, tmp_path, monkeypatch):
    with pretended_gpu():
        before, after = (trainer_of("collapse_ablation:dsd", digits) for _ in range(2))
        list(before.run(stop=lambda: before.step == 2))
        saved = []
        monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *given: saved.extend(given))
        before.save(tmp_path)
        _, step, tensors, state, *_ = saved
        read = {name: torch.empty_like(value, device="cpu") for name, value in tensors.items()}
        monkeypatch.setattr(
            checkpoints, "newest_checkpoint", lambda folder, usable: (folder / f"step-{step}", read, state)
        )
        after.folder = tmp_path
        assert after.resume() and after.step == 2
        assert after.train_step() is None
        held = [*after.trained.state_dict().values(), *after._sums.values()]
        moments = [value for part in after.optimiser.parts for entry in part.state.values() for value in entry.values()]
        assert moments and {value.device.type for value in held + moments} == {"cuda"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("guidance", "interval"), [(1.0, None), (1.5, Interval(0.2, 0.8))])
def test_images_are_sampled_on_a_gpu_and_come_back(digits, sampler, guidance, interval):
    with pretended_gpu():
        trainer = trainer_of("collapse_ablation:dsd", digits)
        y = torch.arange(6) % 10
        images = sample_images(trainer.network, trainer.trial, y, sampler, 3, guidance, 0, GPU, 4, interval=interval)
        assert images.device.type == "cpu" and images.shape == (6, 1, 8, 8)


def test_reconstructions_latents_and_features_are_computed_on_a_gpu_and_come_back(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(extractor, "_MAX_STEPS", 2)
    extractor.load_extractor(digits, tmp_path, torch.device("cpu"))
    indomain = features.indomain(extractor.extractor_path(tmp_path, digits.fingerprint))
    with pretended_gpu():
        trainer = trainer_of("collapse_ablation:dsd", digits)
        data = trainer.data
        found = [
            reconstructions(trainer.network, data, GPU),
            latents(trainer.network, data.train, torch.arange(20), GPU),
            *extractor._train(data, GPU).extract(data.holdout, GPU),
            *features.extract(indomain, data.holdout.pixels, GPU),
        ]
        assert [value.device.type for value in found if value is not None] == ["cpu"] * 6


def test_features_are_not_rounded_as_a_gpu_s_convolutions_and_matrix_products_are(digits):
    rounded = []

    class Extractor(torch.nn.Module):
        name = features.INDOMAIN

        def forward(self, pixels):
            rounded.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return pixels.flatten(1).float(), pixels.flatten(1).float()

    torch.set_float32_matmul_precision("high")
    try:
        features.extract(Extractor(), digits.holdout.pixels[:2], torch.device("cpu"))
        assert rounded == [(False, "highest")]
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_images_that_are_not_on_the_gpu_are_sent_from_memory_whose_copies_are_not_waited_for(digits, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda pixels: pinned.append(pixels.shape) or pixels)
    with pretended_gpu() as gpu:
        train = without_numbers(digits).train
        Split.at(train, torch.arange(3), GPU)
        Split.at(train, torch.arange(3), torch.device("cpu"))
        assert gpu.waits == []
    assert pinned == [(3, 1, 8, 8)]


def test_what_makes_the_host_wait_is_noted_and_devices_do_not_mix():
    """The pretended GPU itself."""
    here = torch.zeros(3)
    with pretended_gpu() as gpu:
        there = torch.zeros(3, device=GPU)
        here = torch.empty_like(here)
        there + there
        here.to(GPU, non_blocking=True)
        assert gpu.waits == []
        for waited in (
            lambda: there.sum().item(),
            lambda: bool((there > 0).all()),
            lambda: there[there > 0],
            lambda: there.tolist(),
            lambda: there.cpu(),
            lambda: here.to(GPU),
            lambda: here.copy_(there),
            lambda: torch.tensor([1.0], device=GPU),
        ):
            gpu.waits.clear()
            waited()
            assert gpu.waits
        for mixed in (lambda: there + here, lambda: torch.stack([there.sum(), here.sum()])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
