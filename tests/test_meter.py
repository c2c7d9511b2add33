"""Images, FLOPs and speed beside the step of every record, and figures against them."""

import numpy as np
import pytest
import torch
from sweeping import described, train_here, write_spec

from dsd_lab.home.history import History, history_table
from dsd_lab.home.home import Home
from dsd_lab.home.spool import read_spool
from dsd_lab.home.trial_records import SpoolLine
from dsd_lab.planning.estimates import Shape
from dsd_lab.planning.flops import count_shape
from dsd_lab.report.results import Result
from dsd_lab.runs import meter as metering
from dsd_lab.runs.meter import Meter

CPU = torch.device("cpu")
PHASES = [{"start": 5, "objective": {"diffusion_weight": 0.5}}]


def shape_of(trial):
    return Shape(**count_shape(trial, 1, 10))


def test_images_and_flops_follow_from_the_step(tiny_trial):
    trial = tiny_trial()
    shape, batch = shape_of(trial), trial.training.batch_size
    found = [Meter(trial, shape, CPU).seen(step) for step in (0, 3)]
    assert found == [
        {"images": 0, "flops": 0.0},
        {"images": 3 * batch, "flops": 3.0 * batch * shape.flops_per_image},
    ]


def test_flops_of_phases_are_counted_phase_by_phase():
    shape = Shape({}, {}, 0, 20, {}, stage_flops=(10, 30))
    trial = described_trial({"training": {"steps": 10, "batch_size": 2, "phases": PHASES}})
    assert [shape.flops_until(trial, step) for step in (0, 5, 6, 10)] == [0, 100, 160, 400]
    old = Shape({}, {}, 0, 20, {})  # counted by an earlier version: the mean alone is known
    assert [old.flops_until(trial, step) for step in (5, 10)] == [200, 400]


def described_trial(fields):
    return described(fields).trial


def test_speed_is_of_the_steps_that_were_timed_and_mfu_is_there_where_a_peak_is_stated(tiny_trial, monkeypatch):
    trial = tiny_trial()
    batch, meter = trial.training.batch_size, Meter(trial, shape_of(trial), CPU)
    speed = meter.speed(2, 6, 0.5)
    assert speed.images_per_second == 8 * batch and speed.peak_memory_bytes > 2**20 and speed.mfu is None
    assert meter.speed(6, 6, 0.0).images_per_second is None  # resumed at this step: nothing was timed
    monkeypatch.setattr(metering, "peak_flops", lambda device, precision: 1e9)
    assert meter.speed(2, 6, 0.5).mfu == pytest.approx(4 * batch * meter.shape.flops_per_image / 0.5 / 1e9)


def test_peaks_are_those_of_the_named_gpus(monkeypatch):
    monkeypatch.setattr(metering, "device_name", lambda device: "NVIDIA H200")
    assert metering.peak_flops(torch.device("cuda"), "bf16") == 989e12
    monkeypatch.setattr(metering, "device_name", lambda device: "a later one")
    assert metering.peak_flops(torch.device("cuda"), "bf16") is None and metering.peak_flops(CPU, "fp32") is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meter")
    home, spec = Home(folder / "home"), write_spec(folder, evaluate=[])
    (trial,) = train_here(home, spec).trials
    return home.trial(trial.id), trial.fields


def test_every_record_holds_images_and_flops_and_training_records_the_speed(trained):
    folder, fields = trained
    lines, flops = list(read_spool(folder.spool)), folder.description().flops_per_image
    assert all(line.images == line.step * fields.training.batch_size for line in lines)
    assert all(line.flops == line.images * flops for line in lines)
    assert all((line.machine is not None) == (line.kind == "train") for line in lines)
    assert all(line.machine.images_per_second > 0 for line in lines if line.kind == "train")
    assert not {"machine", "time", "seconds"} & {key for line in lines for key in line.result()}


def test_the_history_knows_them_by_name(trained):
    folder, fields = trained
    table = history_table(folder.spool)
    assert {"seen/images", "seen/flops", "machine/images_per_second", "machine/peak_memory_bytes"} <= {*table["name"]}
    seen = table[table["name"] == "seen/images"]
    assert (seen["value"] == seen["step"] * fields.training.batch_size).all()
    assert not table.duplicated(["step", "name", "index"]).any()


def test_a_line_of_an_earlier_version_has_none_of_it():
    line = SpoolLine(n=0, time=1.7e9, step=4, kind="train", metrics={"train/loss": 1.0}, seconds=0.5)
    assert line.measured() == {"train/loss": 1.0}
    assert "images" not in line.result()


def result(history, **flops):
    record = described({"training": {"batch_size": 8}}).changed(**flops)
    return Result("a", "v", {}, 0, "nano8", "done", 10, 10, 1.0, None, {}, history, description=record)


def rows(**series):
    found = [(s, f"seen/{name}", v) for name, values in series.items() for s, v in values]
    steps, names, values = zip(*found, strict=True)
    return History(np.array(steps), np.array(names, dtype=object), np.full(len(found), -1), np.array(values, float))


def test_steps_have_their_place_on_each_axis():
    there = result(rows(images=[(4, 32), (10, 80)], flops=[(4, 400.0), (10, 1600.0)]))
    steps = np.array([0, 4, 7, 10])
    assert there.along(steps, "step").tolist() == [0, 4, 7, 10]
    assert there.along(steps, "images").tolist() == [0, 32, 56, 80]
    assert there.along(steps, "flops").tolist() == [0, 400, 1000, 1600]


def test_records_of_earlier_versions_take_the_axes_from_their_fields():
    steps = np.array([0, 5])
    assert result(History.empty(), flops_per_image=7).along(steps, "images").tolist() == [0, 40]
    assert result(History.empty(), flops_per_image=7).along(steps, "flops").tolist() == [0, 280]
    assert np.isnan(result(History.empty(), flops_per_image=None).along(steps, "flops")).all()
