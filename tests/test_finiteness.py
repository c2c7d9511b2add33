"""What is not finite never moves a weight, whether the host is told at once or, as beside a GPU, one step late."""

import math

import pytest
import torch

from dsd_lab.core.training.events import Checkpointed, Diverged, Logged
from dsd_lab.core.training.finiteness import Finiteness
from dsd_lab.core.training.trainer import Trainer

CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def trainer_told(delay, trial, digits, folder=None, device=CPU):
    """A trainer whose host hears of each step so many steps late."""
    trainer = Trainer(trial, 0, digits, device, folder)
    trainer.finiteness = Finiteness(device, trainer.optimiser, delay)
    return trainer


def spoil(trainer, at):
    """Make the loss of one step NaN."""
    honest = trainer.draw

    def draw(step):
        x, draws = honest(step)
        return (x * math.nan if step == at else x), draws

    trainer.draw = draw


def moved(trainer):
    """Weights and the optimiser's state."""
    weights = {name: value.clone() for name, value in trainer.network.named_parameters()}
    moments = trainer.optimiser.state_dict()["state"]
    return weights | {f"{i}.{name}": value.clone() for i, entry in moments.items() for name, value in entry.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("delay", [1, 3])
def test_a_step_that_is_not_finite_moves_nothing_and_is_named_however_late_the_host_hears_of_it(
    tiny_trial, digits, delay
):
    rare = {"log_every": 10**6, "images_every": 10**6, "checkpoint_every": 10**6}
    trial = tiny_trial(observation=rare, probe={"every": 10**6}, training={"steps": 9})
    at_once, late = (trainer_told(told, trial, digits) for told in (0, delay))
    for trainer in (at_once, late):
        spoil(trainer, 4)
    taken = []
    late_step = late.train_step
    late.train_step = lambda: taken.append(late.step) or late_step()
    ends = [list(trainer.run())[-1] for trainer in (at_once, late)]
    assert ends[0] == ends[1] == Diverged(4, "the loss of step 5 is not finite")
    assert taken[-1] == 4 + delay, "the steps after it were made before the host heard"
    assert late.step == at_once.step == 4
    assert_same(moved(late), moved(at_once))


def test_what_is_told_or_kept_of_a_step_waits_until_the_step_is_known_to_be_finite(tiny_trial, digits, tmp_path):
    trial = tiny_trial(observation={"log_every": 1, "checkpoint_every": 1})
    trainer = trainer_told(1, trial, digits, tmp_path)
    spoil(trainer, 4)
    events = list(trainer.run())
    assert events[-1] == Diverged(4, "the loss of step 5 is not finite")
    told = [event for event in events if isinstance(event, (Logged, Checkpointed))]
    assert max(event.step for event in told) == 4
    assert all(math.isfinite(event.metrics["train/loss"]) for event in told if isinstance(event, Logged))


def test_a_trial_that_is_stopped_after_a_step_that_was_not_finite_has_diverged_and_saves_nothing(
    tiny_trial, digits, tmp_path
):
    rare = {"log_every": 10**6, "images_every": 10**6, "checkpoint_every": 10**6}
    trainer = trainer_told(1, tiny_trial(observation=rare, probe={"every": 10**6}), digits, tmp_path)
    spoil(trainer, 4)
    events = list(trainer.run(stop=lambda: trainer.step == 5))
    assert events[-1] == Diverged(4, "the loss of step 5 is not finite")
    assert not list(tmp_path.iterdir())


def test_a_late_host_changes_nothing_of_a_training_that_is_finite(tiny_trial, digits):
    at_once, late = (trainer_told(told, tiny_trial(), digits) for told in (0, 1))
    ends = [list(trainer.run())[-1] for trainer in (at_once, late)]
    assert ends[0] == ends[1] and not isinstance(ends[0], Diverged)
    assert_same(moved(late), moved(at_once))
    assert_same(dict(late.average.named_parameters()), dict(at_once.average.named_parameters()))


def test_only_optimisers_that_can_skip_a_step_by_themselves_let_the_host_be_late(tiny_trial, digits):
    assert trainer_told(0, tiny_trial(), digits).optimiser.can_skip
    assert not trainer_told(0, tiny_trial(optimiser={"kind": "muon"}), digits).optimiser.can_skip


@NO_GPU
@pytest.mark.parametrize("objective", [{}, {"target": "ema", "output": "clean", "loss_space": "clean"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_on_a_gpu_waits_for_it(tiny_trial, digits, objective, precision):
    trial = tiny_trial(objective=objective, training={"precision": precision}, augmentation={"flip": 0.5, "mask": 0.2})
    trainer = Trainer(trial, 0, digits, torch.device("cuda"))
    for _ in range(3):  # moments, caches and the images' copy are made
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.diverged(wait=True) is None


@NO_GPU
def test_on_a_gpu_a_step_that_is_not_finite_moves_nothing(tiny_trial, digits):
    trainer = Trainer(tiny_trial(), 0, digits, torch.device("cuda"))
    spoil(trainer, 2)
    for _ in range(2):
        trainer.train_step()
    before = moved(trainer)
    found = [trainer.train_step() for _ in range(2)]
    assert found == [None, Diverged(2, "the loss of step 3 is not finite")]
    assert_same(moved(trainer), before)
