"""Numbers that are none: they enter no optimiser step, no mean and no figure, and a reader is told where they were."""

import math
from types import SimpleNamespace

import pytest
import torch
from sweeping import EVALUATION, run, train_here, write_spec

from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from dsd_lab.core.training.events import Diverged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import OK
from dsd_lab.home.home import Home
from dsd_lab.report.flags import flags_of


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_f6_a_later_part_of_a_batch_that_is_not_finite_takes_no_step(what, tiny_trial, digits):
    trainer = Trainer(tiny_trial(training={"grad_accum_steps": 4}), 0, digits, torch.device("cpu"))
    assert trainer.train_step() is None
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    parts = []

    def last_of_four(value):
        parts.append(value)
        return value * math.inf if len(parts) == 4 else value

    if what == "loss":
        trainer.network.patch_in.register_forward_hook(lambda module, given, value: last_of_four(value))
    else:
        trainer.network.patch_in.weight.register_hook(last_of_four)
    diverged = trainer.train_step()
    assert isinstance(diverged, Diverged) and f"the {what} of step 2 is not finite" in diverged.reason
    assert len(parts) == 4 and trainer.step == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_f6_averaged_weights_alone_that_are_not_finite_are_told_of_and_nothing_is_measured_of_them(tmp_path):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path)
    (trial,) = train_here(home, spec).trials
    folder = home.trial(trial.id)
    newest = list_checkpoints(folder.checkpoints)[0]
    tensors, state = load_checkpoint(newest)
    tensors["average.patch_in.weight"][0] = math.nan
    (newest / "tensors.safetensors").unlink()
    newest.rename(tmp_path / "before")
    save_checkpoint(folder.checkpoints, trial.fields.training.steps, tensors, state, keep=2)
    words = ["--images", "12", "--sampler", "euler", "--steps", str(EVALUATION["steps"]), "--no-tracking"]
    assert run("evaluate", trial.id, *words, "--weights", "ema", "--home", home.root)[0] == OK
    ((_, content),) = folder.evaluations().items()
    assert content.metrics == {"not_finite/weights/ema": 1.0}
    assert run("logs", trial.id, "--home", home.root)[1]["metrics"]["not_finite/weights/ema"]["value"] == 1


def test_a_report_says_what_is_left_out_because_it_was_not_finite():
    bad = {"not_finite/latent/rankme/image": 1.0, "not_finite/weights/ema": 1.0, "not_finite/fid/x": 1.0}
    results = [
        SimpleNamespace(metrics=metrics) for metrics in ({"fid_flag/not_finite/x": 1.0, **bad}, bad, {"kid/x": 1.0})
    ]
    assert flags_of(results) == [
        "FID of 1 trial (x) is not finite and is left out.",
        "Weights (ema) of 2 trials are not finite: no metrics are computed, and their images are a checkerboard.",
        "Not finite at some step, where they are left out: latent/rankme/image (2 trials).",
    ]
    many = SimpleNamespace(metrics={f"not_finite/train/{i}": 1.0 for i in range(10)})
    (line,) = flags_of([many])
    assert line.endswith("train/7 (1 trial) and 2 more.")
