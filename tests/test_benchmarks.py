"""The project's own benchmarks: the bare loop is the trainer's, and figures and targets are added up right. No time is asserted."""

import json
import os
from dataclasses import replace

import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.bare_loop import BareLoop, _written_out, by_hand
from benchmarks.durability import measure as durability
from benchmarks.parts import PARTS, Stopwatch, timed_parts
from benchmarks.targets import SWEEPS, TRIALS, verdicts
from benchmarks.whole_sweep import figures, whole_sweep
from sweeping import write_spec

from dsd_lab.bench.clock import Clock
from dsd_lab.core.data.splits import StreamedImages
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.home.home import Home
from dsd_lab.specs.loading import load_sweep

CPU = torch.device("cpu")
MANY = {
    "dsd": {},
    "control": {"objective": {"diffusion_weight": 0.0}},
    "naive": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity", "reconstruction": "l1"}},
    "converted": {"objective": {"output": "velocity", "weighting": "velocity"}, "time": {"shift": 2.0}},
    "clean_in_velocity": {"objective": {"target": "stop_gradient", "output": "clean", "loss_space": "velocity"}},
    "detached": {"objective": {"target": "stop_gradient", "noised": "detached"}, "training": {"precision": "bf16"}},
    "more": {"auxiliary": {"representation": 0.5, "classification": 0.1}, "latent": {"decoder_noise": 0.2}},
    "parts": {"training": {"grad_accum_steps": 2, "extra_ema_decays": [0.9]}},
    "muon": {"optimiser": {"kind": "muon", "encoder_lr_factor": 0.5}, "latent": {"normaliser": "batchnorm"}},
    "phases": {"training": {"phases": [{"start": 0.5, "objective": {"diffusion_weight": 0.0}, "frozen": ["denoise"]}]}},
}
"""One variant for every way through the bare loop."""


def trial_of(variant, folder):
    return load_sweep(write_spec(folder, {"x": MANY[variant]})).trials[0].fields


# -- The comparison is one of like with like -----------------------------------------------------------


@pytest.mark.parametrize("variant", MANY)
def test_the_bare_loop_takes_the_steps_that_the_trainer_takes(variant, digits, tmp_path):
    trainer = Trainer(trial_of(variant, tmp_path), 0, digits, CPU)
    loop = BareLoop(trainer)
    assert loop.by_hand == by_hand(trainer.trial) == (variant not in ("more", "parts", "phases"))
    for step in range(3):
        x, draws = trainer.draw(step)
        assert trainer.train_step() is None
        loop.step(x, draws)
    for name in ("network", "average", "target_encoder", "auxiliaries"):
        ours, theirs = getattr(trainer, name), getattr(loop, name)
        if ours is not None:
            torch.testing.assert_close(dict(theirs.state_dict()), dict(ours.state_dict()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["dsd", "more"])
def test_the_bare_loops_own_batches_are_images_and_noise_of_the_right_kind(variant, digits, tmp_path):
    loop = BareLoop(Trainer(trial_of(variant, tmp_path), 0, digits, CPU))
    seen = set()
    for _ in range(3):
        x, draws = loop.batch()
        seen.add(x.sum().item())
        assert x.shape == (8, 1, 8, 8) and -1 <= x.min() < 0 < x.max() <= 1
        assert draws.t.shape == draws.y.shape == (8,) and draws.e.shape == (8, 4, 8)
        assert draws.t.min() >= 0 and draws.t.max() <= 1 and draws.y.max() <= digits.classes
        loop.step(x, draws)
    assert len(seen) == 3


@pytest.mark.parametrize("variant", ["dsd", "more"])
def test_the_bare_loop_has_images_that_the_trainer_streams_in_memory(variant, digits, tmp_path):
    train = digits.train

    def decode(index):
        return train.pixels[index].numpy()

    streamed = replace(digits, train=StreamedImages(decode, train.labels, train.shape, train.levels, workers=0))
    loop = BareLoop(Trainer(trial_of(variant, tmp_path), 0, streamed, CPU))
    assert len(loop.pixels) == len(loop.labels) == 32 and torch.equal(loop.pixels, train.pixels[:32])
    for _ in range(5):  # more than one epoch of them
        loop.step(*loop.batch())
    assert loop.count == 5


@pytest.mark.parametrize("name", ["target", "noised", "output", "loss_space", "weighting", "reconstruction"])
def test_the_bare_loop_takes_no_value_that_it_does_not_know_for_another(name, tiny_trial, digits):
    trainer = Trainer(tiny_trial(objective={"target": "stop_gradient"}), 0, digits, CPU)
    x, draws = trainer.draw(0)
    objective = trainer.trial.objective
    assert _written_out(trainer.network, None, x, draws, objective).isfinite()
    with pytest.raises(ValueError, match=f"objective.{name}: 'invented'"):
        _written_out(trainer.network, None, x, draws, objective.model_copy(update={name: "invented"}))


# -- Timers around the trainer ---------------------------------------------------------------------------


def test_a_stopwatch_counts_every_moment_for_the_innermost_part_alone(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(Clock, "now", lambda self: float(next(ticks)))
    watch = Stopwatch(Clock(CPU))
    inner = watch.timed("encode", lambda: None)
    watch.timed("rest", lambda: [inner(), inner()])()
    assert watch.seconds["encode"] == 2 and watch.seconds["rest"] == 3 and sum(watch.seconds.values()) == 5


@pytest.mark.parametrize("variant", ["dsd", "more", "parts"])
def test_timers_find_every_part_change_no_number_and_leave_nothing_behind(variant, digits, tmp_path):
    trial = trial_of(variant, tmp_path)
    plain, timed = (Trainer(trial, 0, digits, CPU) for _ in range(2))
    watch = Stopwatch(Clock(CPU))
    with timed_parts(timed, watch):
        timed.train_step()
    assert set(watch.seconds) == set(PARTS) and all(seconds > 0 for seconds in watch.seconds.values())
    plain.train_step()
    before = dict(watch.seconds)
    plain.train_step()
    timed.train_step()
    assert watch.seconds == before
    assert all(torch.equal(a, b) for a, b in zip(plain.network.parameters(), timed.network.parameters(), strict=True))
    assert not {"encode_raw", "denoise", "decode"} & vars(timed.network).keys()
    assert not {"train_step", "draw", "gradients"} & vars(timed).keys()


def test_the_parts_add_up_to_a_step(digits, tmp_path, monkeypatch):
    trainer, read = Trainer(trial_of("dsd", tmp_path), 0, digits, CPU), []
    now = Clock.now
    monkeypatch.setattr(Clock, "now", lambda self: read.append(now(self)) or read[-1])
    watch = Stopwatch(Clock(CPU))
    with timed_parts(trainer, watch):
        trainer.train_step()
    assert sum(watch.seconds.values()) == pytest.approx(read[-1] - read[0], rel=1e-6)


# -- Figures and targets ---------------------------------------------------------------------------------


def test_the_figure_that_is_furthest_from_a_target_is_named():
    def figures_of(name, ratio, share, sampling):
        return {
            "name": name,
            "loop": {"ratio": {"median": ratio}},
            "shares": {"probes": share, "events": 0.001, "checkpoints": 0.001},
            "evaluation": sampling and {"sampling": {"median": sampling}, "features": {"median": 1.0}},
            "memory": {"off_plan": 0.02},
        }

    found = {v["name"]: v for v in verdicts([figures_of("a", 1.0, 0.04, 1.2), figures_of("b", 1.1, 0.02, None)])}
    assert {name: (v["of"], v["met"]) for name, v in found.items() if not v["met"]} == {
        "loop": ("b", False), "probes": ("a", False), "sampling": ("a", False),
    }  # fmt: skip
    assert len(found) == sum(not target.of for target in TRIALS)
    assert (found["loop"]["bound"], found["loop"]["measured"]) == ("at most 1.03", "1.100")
    assert (found["probes"]["bound"], found["probes"]["measured"]) == ("at most 3.00%", "4.00%")


def test_a_gpu_has_targets_of_its_own_which_are_least_figures_of_sizes():
    def used(size, share, on="cuda"):
        return {"name": size, "size": size, "on": on, "utilisation": {"median": share}}

    trials = [used("small256", 0.3), used("small256", 0.24), used("middle256", 0.36), used("nano8", 0.01)]
    found = {v["name"]: (v["bound"], v["figure"], v["met"]) for v in verdicts(trials)}
    assert found == {
        "used, small256": ("at least 25.00%", 0.24, False),
        "used, middle256": ("at least 35.00%", 0.36, True),
    }
    assert verdicts([used("base256", 0.1, on="cpu")]) == []


def test_of_sweeps_what_was_not_measured_has_no_target():
    sweep = {
        "name": "a",
        "first_step_seconds": 16.0,
        "occupancy": 1.05,
        "overhead_seconds": None,
        "handles_growth": 1.2,
    }
    other = {"name": "b", "first_step_seconds": 9.0, "occupancy": None, "memory_growth": None, "handles_growth": 1.0}
    found = [(t["name"], t["of"], t["measured"], t["met"]) for t in verdicts([sweep, other], SWEEPS)]
    assert found == [
        ("first step", "a", "16.000 s", False), ("occupancy", "a", "1.050", True), ("handles", "a", "1.200", False),
    ]  # fmt: skip


def test_occupancy_is_the_time_of_all_over_the_trials_own_a_slot(tmp_path):
    home = Home(tmp_path)
    spans = [(7, 0.0, 10.0), (8, 0.0, 8.0), (7, 10.5, 18.5), (8, 8.25, 20.0)]
    moments = [(worker, 2**30 + began, 2**30 + ended) for worker, began, ended in spans]
    for number, (worker, started, ended) in enumerate(moments):
        folder = tmp_path / "trials" / str(number)
        folder.mkdir(parents=True)
        busy = ended - started - 0.5
        status = {"pid": worker, "started": started, "updated": ended, "seconds": busy, "state": "done"}
        (folder / "status.json").write_text(json.dumps(status))
    looks = [(0, {}), (1, {7: (900, 40)}), (3, {7: (950, 41), 8: (970, 40)}), (4, {8: (990, 42)}), (4, {})]
    found = figures(home, looks)
    busy = sum(ended - started for _, started, ended in moments) - 4 * 0.5
    assert found["trials"] == 4 and found["slots"] == 2 and found["busy_seconds"] == busy
    assert found["occupancy"] == pytest.approx(20 / (busy / 2))
    assert found["each_seconds"] == pytest.approx((10.5 + 8.25) / 2)
    assert found["overhead_seconds"] == pytest.approx((1.0 + 0.75) / 2)
    assert found["memory"] == [900, 990] and found["handles"] == [40, 42]
    assert found["memory_growth"] == pytest.approx(1.1) and found["handles_growth"] == pytest.approx(1.05)
    assert figures(home, [])["memory"] is None  # nobody could look
    for path in tmp_path.glob("trials/*/status.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 0.1}))
    assert figures(home, [])["occupancy"] is None


def test_a_sweep_that_fails_is_told_with_its_last_words(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    with pytest.raises(BadInput, match=r"none.yaml: its sweep ended with exit code 2: .*no such file"):
        whole_sweep(str(tmp_path / "none.yaml"), [], home)


# -- The program ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_are_measured_with_every_promise(tmp_path, capsys):
    spec = write_spec(tmp_path)
    few = ["--steps", "1", "--repeats", "1", "--store", "--out", str(tmp_path / "answer.json")]
    assert main(["trials", str(spec), *few]) == OK
    answer = json.loads((tmp_path / "answer.json").read_text())
    (trial,) = answer["trials"]
    names = [*(target.name for target in TRIALS if not target.of), "help", "error", "plan"]
    assert [t["name"] for t in answer["targets"]] == names
    assert len(capsys.readouterr().out.splitlines()) == len(names)
    spreads = [*(trial["loop"][k] for k in ("ratio", "cpu_ratio", "bare_step_seconds")), trial["over_eager"]]
    assert list(trial["parts"]) == list(PARTS)
    for spread in (*spreads, *trial["evaluation"].values(), *answer["start_up"].values()):
        assert 0 < spread["min"] <= spread["median"] <= spread["max"] < float("inf")
    assert all(value > 0 for value in trial["store"].values())


@pytest.mark.slow
def test_a_real_sweep_is_measured(tmp_path):
    spec = write_spec(tmp_path, seeds=[0, 1, 2], base={"training": {"steps": 1, "batch_size": 8}})
    assert main(["sweeps", str(spec), "--out", str(tmp_path / "answer.json")]) == OK
    answer = json.loads((tmp_path / "answer.json").read_text())
    (sweep,) = answer["sweeps"]
    assert sweep["trials"] == 3 and 1 <= sweep["slots"] <= (os.cpu_count() or 1)
    assert 0 < sweep["first_step_seconds"] < sweep["wall_seconds"]
    assert {t["name"] for t in answer["targets"]} >= {"first step", "overhead"}


def test_bad_input_of_the_program_is_one_line(tmp_path, capsys):
    assert main(["trials", str(tmp_path / "none.yaml")]) == BAD_INPUT
    assert "no such file" in capsys.readouterr().err


def test_the_cost_of_durability_counts_every_flush_of_a_trial(tmp_path):
    spec = write_spec(tmp_path, {"x": {}})
    found = durability(spec, ["base.training.steps=4", "base.observation.checkpoint_every=2"], "x", 1, tmp_path)
    assert found["last"]["checkpoints"] == 2 and found["last"]["flushes"] >= 4
    assert 0 < found["share"] < 1
