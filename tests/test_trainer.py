"""The trainer: equal seeds give equal bits, a resumed run tells the same story, and divergence stops it in time."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsd_lab.core.data import DataSet, Images
from dsd_lab.core.diffusion.paths import draw_times, shifted
from dsd_lab.core.observing.pictures import to_bytes
from dsd_lab.core.randomness import batch_indices, generator
from dsd_lab.core.training import trainer as trainer_module
from dsd_lab.core.training.checkpoints import tensors_of
from dsd_lab.core.training.ema import Averaging, ramped_decay, warmed_decay
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Finished, Logged, Probed
from dsd_lab.core.training.optimiser import build_optimiser
from dsd_lab.core.training.schedule import learning_rate
from dsd_lab.core.training.trainer import Trainer, pick_device
from dsd_lab.errors import BadInput, NoResources
from dsd_lab.specs.trial import Optimiser, Time

CPU = torch.device("cpu")
BATCHNORM = {"latent": {"normaliser": "batchnorm"}}
KINDS = {
    "live": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "stop_gradient": {"objective": {"target": "stop_gradient"}, "latent": {"decoder_noise": 0.1}},
    "ema": {"objective": {"target": "ema"}, "network": {"layout": "coupled"}},
    "ema with batchnorm": {"objective": {"target": "ema"}, **BATCHNORM},
    "control": {"objective": {"diffusion_weight": 0.0}},
}


def story(events):
    """Events without clock times, images as comparable values."""
    told = []
    for event in events:
        event = dataclasses.replace(event, seconds=0.0) if hasattr(event, "seconds") else event
        images = {name: grid.tolist() for name, grid in event.images.items()} if isinstance(event, Drew) else None
        told.append((event, images))
    return told


def state(trainer):
    """Every tensor that training changes."""
    modules = {"network": trainer.network, "average": trainer.average, "target": trainer.target_encoder}
    return {k: v.clone() for name, m in modules.items() if m is not None for k, v in tensors_of(m, name).items()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def differ(ours, theirs):
    return any(not torch.equal(ours[name], theirs[name]) for name in ours)


# -- Determinism -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_events_and_weights_twice_and_another_seed_gives_others(tiny_trial, digits, kind):
    trial = tiny_trial(**KINDS[kind])
    trainers = [Trainer(trial, seed, digits, CPU) for seed in (7, 7, 8)]
    torch.manual_seed(0)
    first = list(trainers[0].run())
    torch.manual_seed(1)  # torch's global stream must not matter
    second = list(trainers[1].run())
    assert story(first) == story(second)
    assert_equal(state(trainers[0]), state(trainers[1]))
    assert story(first) != story(trainers[2].run())
    assert differ(state(trainers[0]), state(trainers[2]))


def test_the_order_of_trials_in_a_process_does_not_matter(tiny_trial, digits):
    alone = list(Trainer(tiny_trial(), 0, digits, CPU).run())
    one, other = Trainer(tiny_trial(), 0, digits, CPU), Trainer(tiny_trial(), 1, digits, CPU)
    interleaved = []
    for ours, _ in zip(one.run(), other.run(), strict=True):
        interleaved.append(ours)
    assert story(interleaved) == story(alone)


def test_what_is_observed_does_not_change_what_is_trained(tiny_trial, digits, tmp_path):
    quiet = Trainer(tiny_trial(probe={"every": 100}, observation={"images_every": 100}), 0, digits, CPU)
    loud = Trainer(
        tiny_trial(
            probe={"every": 1, "images": 50, "gradient_images": 8},
            observation={"images_every": 1, "log_every": 1, "checkpoint_every": 1},
        ),
        0,
        digits,
        CPU,
        tmp_path,
    )
    for trainer in (quiet, loud):
        list(trainer.run())
    assert_equal(state(quiet), state(loud))


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_leaves_networks_modes_and_gradients_as_it_found_them(tiny_trial, digits, kind):
    trainer = Trainer(tiny_trial(**KINDS[kind]), 0, digits, CPU)
    for _ in range(2):
        trainer.train_step()
    before = state(trainer)
    gradients = [p.grad.clone() for p in trainer.network.parameters() if p.grad is not None]
    trainer.probe_set.measure(trainer.network, trainer.target_encoder)
    assert_equal(state(trainer), before)
    assert trainer.network.training
    after = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))


def test_an_image_in_a_probe_of_batchnorm_latents_does_not_depend_on_the_others(tiny_trial, digits):
    """The target encoder must be probed with running statistics, as the encoder is: equal weights, no rank gap."""
    trial = tiny_trial(objective={"target": "ema"}, **BATCHNORM)
    trainer = Trainer(trial, 0, digits, CPU)
    for _ in range(3):
        trainer.train_step()
    trainer.target_encoder.load_state_dict(trainer.network.state_dict())
    live = Trainer(tiny_trial(objective={"target": "live"}, **BATCHNORM), 0, digits, CPU)
    live.network.load_state_dict(trainer.network.state_dict())
    ema, _ = trainer.probe_set.measure(trainer.network, trainer.target_encoder)
    joint, _ = live.probe_set.measure(live.network, None)
    gaps = [name for name in joint if name.startswith("rank_gap/")]
    assert gaps and {name: ema[name] for name in gaps} == pytest.approx({name: joint[name] for name in gaps}, rel=1e-9)


# -- Order of events -----------------------------------------------------------------------------------


def test_events_come_in_the_documented_order(tiny_trial, digits, tmp_path):
    trial = tiny_trial(
        training={"steps": 5},
        probe={"every": 2},
        observation={"log_every": 2, "images_every": 3, "checkpoint_every": 4},
    )
    told = [(type(event), event.step) for event in Trainer(trial, 0, digits, CPU, tmp_path).run()]
    assert told == [
        (Probed, 0),
        (Logged, 2),
        (Probed, 2),
        (Drew, 3),
        (Logged, 4),
        (Probed, 4),
        (Checkpointed, 4),
        (Logged, 5),
        (Probed, 5),
        (Drew, 5),
        (Checkpointed, 5),
        (Finished, 5),
    ]


def test_without_a_folder_no_checkpoint_is_told_of(tiny_trial, digits):
    events = list(Trainer(tiny_trial(), 0, digits, CPU).run())
    assert not any(isinstance(event, Checkpointed) for event in events)
    assert events[-1] == Finished(6, 6 * 8)


def test_a_checkpoint_is_on_disk_when_it_is_told_of(tiny_trial, digits, tmp_path):
    for event in Trainer(tiny_trial(), 0, digits, CPU, tmp_path).run():
        if isinstance(event, Checkpointed):
            assert (tmp_path / f"step-{event.step:09d}" / "manifest.json").is_file()


def test_a_record_is_the_mean_of_its_steps(tiny_trial, digits):
    def logged(every):
        trial = tiny_trial(training={"steps": 5}, observation={"log_every": every})
        return [event for event in Trainer(trial, 0, digits, CPU).run() if isinstance(event, Logged)]

    single, grouped = logged(1), logged(3)
    assert [event.step for event in grouped] == [3, 5]
    for event, parts in ((grouped[0], single[:3]), (grouped[1], single[3:])):
        for name, value in event.metrics.items():
            assert value == pytest.approx(sum(part.metrics[name] for part in parts) / len(parts), rel=1e-12)
    clipped = (f"clipped/{role}" for role in ("encode", "denoise", "decode"))
    names = ("loss", "reconstruction", "diffusion", "gradient_norm", "learning_rate", *clipped)
    assert set(single[0].metrics) == {f"train/{name}" for name in names}


def test_a_control_has_neither_samples_nor_rank_gaps_nor_a_diffusion_loss(tiny_trial, digits):
    events = list(Trainer(tiny_trial(**KINDS["control"]), 0, digits, CPU).run())
    for event in events:
        if isinstance(event, Drew):
            assert set(event.images) == {"reconstruction"}
        if isinstance(event, Probed):
            assert not any(name.startswith(("rank_gap", "interference")) for name in event.metrics)
        if isinstance(event, Logged):
            assert "train/diffusion" not in event.metrics


def test_interference_is_absent_where_the_diffusion_loss_does_not_reach_the_latents(tiny_trial, digits):
    def names(**objective):
        trainer = Trainer(tiny_trial(objective=objective), 0, digits, CPU)
        trainer.train_step()
        metrics, _ = trainer.probe_set.measure(trainer.network, trainer.target_encoder)
        return {name for name in metrics if name.startswith("interference/")}

    everything = {f"interference/{part}{kind}" for part in ("", "encoder/") for kind in ("cosine", "norm_ratio")}
    assert names(target="ema") == everything
    assert names(target="ema", noised="detached") == set()


# -- Resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_interrupted_after_any_event_goes_on_to_the_same_events_and_weights(tiny_trial, digits, tmp_path, kind):
    every = {"log_every": 3, "checkpoint_every": 2, "images_every": 4}
    trial = tiny_trial(**KINDS[kind], training={"steps": 5}, probe={"every": 3}, observation=every)
    whole = Trainer(trial, 3, digits, CPU, tmp_path / "whole")
    events = list(whole.run())
    for count in range(1, len(events), 1 if kind == "ema with batchnorm" else 4):
        folder = tmp_path / str(count)
        interrupted = Trainer(trial, 3, digits, CPU, folder)
        run = interrupted.run()
        before = [next(run) for _ in range(count)]
        run.close()
        again = Trainer(trial, 3, digits, CPU, folder)
        saved = [i for i, event in enumerate(before) if isinstance(event, Checkpointed)]
        assert again.resume() == bool(saved)
        after = list(again.run())
        kept = before[: saved[-1] + 1] if saved else []
        assert story(kept + after) == story(events)
        assert_equal(state(again), state(whole))


def test_f20_resuming_from_every_step_gives_the_same_weights(tiny_trial, digits, tmp_path):
    watch = {"checkpoint_every": 1, "log_every": 4, "images_every": 100}
    trial = tiny_trial(training={"steps": 10}, observation=watch)
    whole = Trainer(trial, 0, digits, CPU)
    list(whole.run())
    for step in range(1, 11):
        first = Trainer(trial, 0, digits, CPU, tmp_path / str(step))
        run = first.run()
        while not isinstance(event := next(run), Checkpointed) or event.step < step:
            pass
        run.close()
        again = Trainer(trial, 0, digits, CPU, tmp_path / str(step))
        assert again.resume() and again.step == step
        list(again.run())
        assert_equal(state(again), state(whole))


def test_a_finished_run_resumes_to_its_end_at_once(tiny_trial, digits, tmp_path):
    whole = Trainer(tiny_trial(), 0, digits, CPU, tmp_path)
    list(whole.run())
    again = Trainer(tiny_trial(), 0, digits, CPU, tmp_path)
    assert again.resume()
    assert list(again.run()) == [Finished(6, 48)]
    assert_equal(state(again), state(whole))


def test_there_is_nothing_to_resume_in_an_empty_or_missing_folder(tiny_trial, digits, tmp_path):
    for folder in (None, tmp_path, tmp_path / "missing"):
        trainer = Trainer(tiny_trial(), 0, digits, CPU, folder)
        assert not trainer.resume() and trainer.step == 0


def test_a_checkpoint_of_other_images_is_refused(tiny_trial, digits, tmp_path):
    list(Trainer(tiny_trial(), 0, digits, CPU, tmp_path).run())
    other = dataclasses.replace(digits, fingerprint="another")
    with pytest.raises(BadInput, match="trained on other images"):
        Trainer(tiny_trial(), 0, other, CPU, tmp_path).resume()


# -- Divergence ---------------------------------------------------------------------------------------


def poisoned(trainer, step, value):
    """Make one pixel of one step's images `value`."""
    honest = trainer.draw

    def draw(at):
        x, draws = honest(at)
        if at == step:
            x = x.clone()
            x[0, 0, 0, 0] = value
        return x, draws

    trainer.draw = draw


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_optimiser_step(tiny_trial, digits, tmp_path, value):
    trial = tiny_trial(observation={"checkpoint_every": 1})
    honest, trainer = (Trainer(trial, 0, digits, CPU, tmp_path / name) for name in ("honest", "poisoned"))
    poisoned(trainer, 4, value)
    events = list(trainer.run())
    assert [type(event) for event in events].count(Diverged) == 1
    assert isinstance(events[-1], Diverged) and events[-1].step == 4
    assert "loss" in events[-1].reason and "5" in events[-1].reason
    run = honest.run()
    while not isinstance(event := next(run), Checkpointed) or event.step < 4:
        pass
    assert_equal(state(trainer), state(honest))
    assert trainer.step == 4


def test_a_gradient_that_is_not_finite_stops_before_the_optimiser_step(tiny_trial, digits):
    trainer = Trainer(tiny_trial(), 0, digits, CPU)
    trainer.train_step()
    before = state(trainer)
    trainer.network.patch_in.weight.register_hook(lambda gradient: gradient * math.inf)
    diverged = trainer.train_step()
    assert isinstance(diverged, Diverged) and "gradient" in diverged.reason
    assert trainer.step == 1
    assert_equal(state(trainer), before)


def test_divergence_is_told_again_after_resuming(tiny_trial, digits, tmp_path):
    last = []
    for _ in range(2):
        trainer = Trainer(tiny_trial(), 0, digits, CPU, tmp_path)
        trainer.resume()
        poisoned(trainer, 4, math.nan)
        last.append(list(trainer.run())[-1])
    assert last[0] == last[1] and isinstance(last[0], Diverged)


@pytest.mark.parametrize("normaliser", ["none", "layernorm", "batchnorm"])
def test_latents_that_overflow_at_a_probe_end_as_divergence_and_not_as_an_error(tiny_trial, digits, normaliser):
    every = {"log_every": 1, "images_every": 1}
    trial = tiny_trial(latent={"normaliser": normaliser}, probe={"every": 1}, observation=every)
    trainer = Trainer(trial, 0, digits, CPU)
    run = trainer.run()
    while not isinstance(next(run), Logged):  # an optimiser step was just taken; the probe comes next
        pass
    with torch.no_grad():
        trainer.network.heads["encode"].out.weight.fill_(3e38)
    assert isinstance(list(run)[-1], Diverged)


# -- The step ----------------------------------------------------------------------------------------


def test_the_logged_gradient_norm_is_that_before_clipping(tiny_trial, digits):
    logged = []
    for clip in (0.01, 1e6):
        trainer = Trainer(tiny_trial(training={"steps": 1}, optimiser={"clip": clip}), 0, digits, CPU)
        logged += [e.metrics["train/gradient_norm"] for e in trainer.run() if isinstance(e, Logged)]
    assert logged[0] == logged[1] > 0.05


def test_training_lowers_the_reconstruction_loss(tiny_trial, digits):
    trial = tiny_trial(**KINDS["control"], training={"steps": 60, "batch_size": 32}, observation={"log_every": 10})
    found = [e.metrics["train/reconstruction"] for e in Trainer(trial, 0, digits, CPU).run() if isinstance(e, Logged)]
    assert found[-1] < 0.6 * found[0]


@pytest.mark.parametrize("kind", ["live", "ema with batchnorm"])
def test_bf16_trains_with_float32_weights_and_differs_from_fp32(tiny_trial, digits, kind):
    trials = [tiny_trial(**KINDS[kind], training={"steps": 4, "precision": p}) for p in ("fp32", "bf16")]
    full, half = (Trainer(trial, 0, digits, CPU) for trial in trials)
    start, exact = state(half), list(full.run())
    rounded = list(half.run())
    assert all(p.dtype == torch.float32 for p in half.network.parameters())
    assert differ(state(half), start) and differ(state(half), state(full))
    losses = [[e.metrics["train/loss"] for e in events if isinstance(e, Logged)] for events in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_target_encoder_follows_the_weights_at_its_decay_and_is_there_only_where_needed(tiny_trial, digits):
    trainer = Trainer(tiny_trial(objective={"target": "ema", "target_decay": 0.75}), 0, digits, CPU)
    before = {k: v.clone() for k, v in trainer.target_encoder.named_parameters()}
    trainer.train_step()
    after = dict(trainer.network.named_parameters())
    for name, value in trainer.target_encoder.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * after[name], atol=1e-6)
        assert not value.requires_grad and value.grad is None
    assert Trainer(tiny_trial(objective={"target": "stop_gradient"}), 0, digits, CPU).target_encoder is None
    assert (
        Trainer(tiny_trial(objective={"target": "ema", "diffusion_weight": 0.0}), 0, digits, CPU).target_encoder is None
    )


@pytest.mark.parametrize(("warmup", "decays"), [(0, [0.75] * 6), (4, [0.0, 0.1875, 0.375, 0.5625, 0.75, 0.75])])
def test_the_target_encoders_decay_ramps_up_over_its_warmup(tiny_trial, digits, warmup, decays):
    assert [ramped_decay(0.75, warmup, n) for n in range(6)] == decays
    trainer = Trainer(tiny_trial(objective={"target_decay": 0.75, "target_warmup": warmup}), 0, digits, CPU)
    for decay in decays[:3]:
        before = {k: v.clone() for k, v in trainer.target_encoder.named_parameters()}
        trainer.train_step()
        after = dict(trainer.network.named_parameters())
        for name, value in trainer.target_encoder.named_parameters():
            assert torch.allclose(value, decay * before[name] + (1 - decay) * after[name], atol=1e-6)


def test_averaged_weights_forget_their_start_and_buffers_are_copied():
    average, network = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.fill_(5)
        network.running_mean.fill_(3)
    Averaging(average, network).follow(0.75)
    assert average.weight.tolist() == [2.0, 2.0]
    assert average.running_mean.tolist() == [3.0, 3.0]
    assert [warmed_decay(0.99, n) for n in (0, 8, 10_000)] == pytest.approx([0.1, 0.5, 0.99])


def test_weight_decay_is_on_matrices_only(tiny_trial, digits):
    network = Trainer(tiny_trial(), 0, digits, CPU).network
    groups = build_optimiser(network, Optimiser(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and all(p.dim() == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"schedule": "constant"}, {0: 1, 50: 1, 99: 1}),
        ({"schedule": "constant", "warmup_steps": 10}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 99: 1}),
        ({"schedule": "cosine"}, {0: 1, 25: 0.5 * (1 + math.sqrt(0.5)), 50: 0.5, 100: 0}),
        ({"schedule": "cosine", "warmup_steps": 20}, {19: 1, 20: 1, 60: 0.5, 100: 0}),
        ({"schedule": "wsd", "tail": 0.3}, {0: 1, 70: 1, 85: 0.5, 97: 0.1, 100: 0}),
        ({"schedule": "wsd", "tail": 1.0}, {0: 1, 50: 0.5}),
    ],
)
def test_the_learning_rate_follows_its_schedule(spec, expected):
    found = {step: learning_rate(Optimiser(lr=2.0, **spec), step, 100) for step in expected}
    assert found == pytest.approx({step: 2.0 * share for step, share in expected.items()}, abs=1e-12)


def test_the_learning_rate_of_the_spec_reaches_the_optimiser(tiny_trial, digits):
    trial = tiny_trial(training={"steps": 4}, optimiser={"lr": 0.5e-3, "warmup_steps": 4}, observation={"log_every": 1})
    rates = [e.metrics["train/learning_rate"] for e in Trainer(trial, 0, digits, CPU).run() if isinstance(e, Logged)]
    assert rates == pytest.approx([0.125e-3, 0.25e-3, 0.375e-3, 0.5e-3], rel=1e-6)


# -- Random numbers ------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 20), st.integers(1, 50))
def test_every_image_is_seen_once_an_epoch(seed, batch, images):
    order = torch.cat([batch_indices(seed, step, batch, images) for step in range(-(-3 * images // batch))])
    assert all(len(batch_indices(seed, step, batch, images)) == batch for step in (0, 5))
    for epoch in range(3):
        assert sorted(order[epoch * images : (epoch + 1) * images].tolist()) == list(range(images))


@given(st.integers(0, 2**40))
def test_every_epoch_has_an_order_of_its_own(seed):
    epochs = [tuple(batch_indices(seed, epoch, 100, 100).tolist()) for epoch in range(3)]
    assert len(set(epochs)) == 3


@given(st.integers(0, 2**40), st.integers(0, 10**9))
def test_the_images_of_a_step_are_a_function_of_seed_and_step(seed, step):
    found = batch_indices(seed, step, 16, 1000)
    torch.rand(3)
    assert torch.equal(found, batch_indices(seed, step, 16, 1000))
    assert not torch.equal(found, batch_indices(seed + 1, step, 16, 1000))
    assert not torch.equal(found, batch_indices(seed, step + 1, 16, 1000))


def test_generators_differ_by_seed_purpose_and_step_and_in_nothing_else():
    def numbers(*key):
        return tuple(torch.rand(4, generator=generator(*key)).tolist())

    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a1", 0), (2**63 - 1, "a", 0)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers(0, "a", 0) == numbers(0, "a", 0) == numbers(0, "a")


def test_labels_are_dropped_at_the_rate_of_the_spec(tiny_trial, digits):
    def dropped(rate):
        trainer = Trainer(tiny_trial(labels={"drop": rate}, training={"batch_size": 1000}), 0, digits, CPU)
        return float((trainer.draw(0)[1].y == 10).double().mean())

    assert dropped(0.0) == 0 and dropped(1.0) == 1
    assert dropped(0.3) == pytest.approx(0.3, abs=0.06)


def test_the_random_numbers_of_a_step_are_a_function_of_seed_and_step(tiny_trial, digits):
    def numbers(trainer, step):
        x, draws = trainer.draw(step)
        return [x, draws.t, draws.e, draws.decoder_e]

    trial = tiny_trial(latent={"decoder_noise": 0.1})
    one, same, other = (Trainer(trial, seed, digits, CPU) for seed in (5, 5, 6))
    for step in range(3):
        numbers(one, step)
    assert all(torch.equal(a, b) for a, b in zip(numbers(one, 3), numbers(same, 3), strict=True))
    for different in (numbers(one, 4), numbers(other, 3)):
        assert not any(torch.equal(a, b) for a, b in zip(numbers(one, 3), different, strict=True))


def test_decoder_noise_is_drawn_only_where_it_is_used_and_changes_no_other_number(tiny_trial, digits):
    without, with_noise = (
        Trainer(tiny_trial(latent={"decoder_noise": n}), 0, digits, CPU).draw(3)[1] for n in (0.0, 0.5)
    )
    assert without.decoder_e is None and with_noise.decoder_e.shape == without.e.shape
    for name in ("t", "e", "y"):
        assert torch.equal(getattr(without, name), getattr(with_noise, name))
    assert not torch.equal(with_noise.decoder_e, with_noise.e)


def test_times_follow_their_distribution():
    uniform = draw_times(Time(), 20_000, generator(0, "t"))
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01) and float(uniform.var()) == pytest.approx(
        1 / 12, abs=0.005
    )
    spec = Time(distribution="logit_normal", mean=0.7, std=0.4)
    logits = torch.logit(draw_times(spec, 20_000, generator(0, "t")).double())
    assert float(logits.mean()) == pytest.approx(0.7, abs=0.02) and float(logits.std()) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("shift", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_a_shift_scales_the_odds_of_noise_as_sd3_does_and_keeps_the_ends(shift, distribution):
    plain, moved = (
        draw_times(Time(distribution=distribution, shift=s), 5000, generator(0, "t")).double() for s in (1.0, shift)
    )
    noise = 1 - plain  # SD3's time, where 1 is noise: equation 23 of arXiv 2403.03206
    assert torch.allclose(1 - moved, shift * noise / (1 + (shift - 1) * noise), atol=1e-6)
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1
    assert shifted(torch.tensor([0.0, 1.0]), shift).tolist() == [0.0, 1.0]
    assert torch.equal(plain, moved) == (shift == 1)


def test_a_shift_moves_the_mean_of_logit_normal_times_by_its_logarithm():
    times = [
        draw_times(Time(distribution="logit_normal", mean=m, shift=s), 1000, generator(0, "t")).double()
        for m, s in ((0.0, 3.0), (-math.log(3.0), 1.0))
    ]
    assert torch.allclose(*times, atol=1e-6)


# -- Bad input -----------------------------------------------------------------------------------------


def test_a_network_for_another_image_size_is_refused(tiny_trial, digits):
    with pytest.raises(BadInput, match=r"network\.image_size is 16.*8 pixels"):
        Trainer(tiny_trial(network={"image_size": 16}), 0, digits, CPU)


def test_images_that_are_not_square_are_refused(tiny_trial):
    oblong = Images(torch.zeros(4, 1, 8, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(BadInput, match="square"):
        Trainer(tiny_trial(), 0, DataSet(oblong, oblong, 1, "f"), CPU)


def test_fewer_images_than_a_batch_are_drawn_more_than_once(tiny_trial, digits):
    few = Images(digits.train.pixels[:5], digits.train.labels[:5])
    events = list(Trainer(tiny_trial(), 0, DataSet(few, few, digits.classes, "few"), CPU).run())
    assert isinstance(events[-1], Finished)


def test_a_gpu_that_is_not_there_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(trainer_module.torch.cuda, "is_available", lambda: False)
    assert pick_device(0) == CPU
    with pytest.raises(NoResources, match=r"resources\.gpus is 0\.5"):
        pick_device(0.5)


def test_pixels_survive_the_way_to_floats_and_back_and_what_is_not_finite_is_a_chessboard():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats, _ = Images(every, torch.zeros(1, dtype=torch.int64)).at(torch.tensor([0]), CPU)
    assert float(floats.min()) == -1 and float(floats.max()) == 1
    assert torch.equal(to_bytes(floats), every)
    wrong = torch.tensor([[math.nan, 9.0, -9.0], [math.inf, -math.inf, math.nan]])
    assert to_bytes(wrong).tolist() == [[0, 255, 0], [255, 0, 255]]
