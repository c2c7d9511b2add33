"""The spool and one trial run in this process: nothing told twice, nothing lost, whatever is interrupted when."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dsd_lab.core.data import DataSet, Images
from dsd_lab.core.observing.pictures import tile
from dsd_lab.core.training.events import Checkpointed, Diverged, Drew, Finished, Logged, Probed
from dsd_lab.home.home import Home
from dsd_lab.home.trial_records import SpoolLine, Status
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.runs.spool_writer import Spool, read_spool
from dsd_lab.specs.identity import evaluation_id, trial_id
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Generation

STORY = [
    Probed(0, {"latent/variance": 1.0}, {"token": [1.0, 0.5]}, 0.1),
    Logged(2, {"train/loss": 3.0}, 0.1),
    Checkpointed(2, 0.1),
    Logged(4, {"train/loss": 2.0}, 0.1),
    Probed(4, {"latent/variance": 0.9}, {"token": [1.0, 0.4]}, 0.1),
    Checkpointed(4, 0.1),
    Logged(6, {"train/loss": 1.0}, 0.1),
    Checkpointed(6, 0.1),
    Finished(6, 48),
]


def plain(lines):
    """Lines without clock times, speed and memory."""
    return [line.result() for line in lines]


def write(folder, events, resumed_at=None):
    spool = Spool(folder / "spool.jsonl", folder / "images", resumed_at)
    for event in events:
        spool.append(event)
    spool.close()
    return plain(read_spool(folder / "spool.jsonl"))


# -- The file --------------------------------------------------------------------------------------


def test_lines_are_numbered_from_zero_and_hold_their_events(tmp_path):
    lines = write(tmp_path, STORY)
    assert [line["n"] for line in lines] == list(range(len(STORY)))
    assert [line["step"] for line in lines] == [event.step for event in STORY]
    assert [line["kind"] for line in lines[:3]] == ["probe", "train", "checkpoint"]
    assert lines[0]["spectra"] == {"token": [1.0, 0.5]} and lines[0]["metrics"] == {"latent/variance": 1.0}
    assert lines[1]["metrics"] == {"train/loss": 3.0}
    assert lines[-1]["kind"] == "finished" and lines[-1]["images_seen"] == 48


def test_divergence_is_a_line_with_its_reason(tmp_path):
    (line,) = write(tmp_path, [Diverged(3, "the loss of step 4 is not finite")])
    told = {"n": 0, "step": 3, "kind": "diverged", "reason": "the loss of step 4 is not finite"}
    assert line == told


def test_every_line_is_strict_json_and_values_that_are_not_finite_are_left_out_and_said_to_be(tmp_path):
    metrics = {"good": 1.0, "nan": math.nan, "inf": math.inf}
    lines = write(tmp_path, [Logged(1, metrics, 0.1), Probed(1, metrics, {"token": [math.nan, 1.0]}, 0.1)])
    told = {"good": 1.0, "not_finite/nan": 1.0, "not_finite/inf": 1.0}
    assert [line["metrics"] for line in lines] == [told, told | {"not_finite/spectrum/token": 1.0}]
    assert lines[1]["spectra"] == {}
    for text in (tmp_path / "spool.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_line_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl", tmp_path / "images", None)
    for count, event in enumerate(STORY, 1):
        spool.append(event)
        assert len(list(read_spool(tmp_path / "spool.jsonl"))) == count
    spool.close()


def test_a_missing_spool_has_no_lines(tmp_path):
    assert list(read_spool(tmp_path / "spool.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_torn_last_line_is_not_there_yet(tmp_path, cut):
    write(tmp_path, STORY)
    path = tmp_path / "spool.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [line.n for line in read_spool(path)] == list(range(len(STORY) - 1))


def test_drawn_images_are_files_that_the_line_names(tmp_path):
    grid = torch.arange(4 * 64, dtype=torch.uint8).reshape(4, 1, 8, 8)
    colour = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    (line,) = write(tmp_path, [Drew(7, {"reconstruction": grid, "samples": colour})])
    assert line["kind"] == "images" and len(line["files"]) == 2
    pictures = [Image.open(tmp_path / "images" / name) for name in line["files"]]
    assert [picture.mode for picture in pictures] == ["L", "RGB"]


def test_a_tile_holds_every_image_enlarged_and_in_reading_order():
    images = torch.stack([torch.full((1, 8, 8), 10 * (i + 1), dtype=torch.uint8) for i in range(5)])
    picture = tile(images, columns=3)
    assert picture.shape == (1, 2 * 33 + 1, 3 * 33 + 1)
    for i in range(5):
        y, x = 1 + 33 * (i // 3), 1 + 33 * (i % 3)
        assert bool((picture[0, y : y + 32, x : x + 32] == 10 * (i + 1)).all())
    assert bool((picture[0, 34:, 67:] == 255).all()) and bool((picture[0, 0] == 255).all())


# -- Resuming the file -----------------------------------------------------------------------------


def rest(step):
    """What a trainer that resumes at a step tells."""
    at = next(i for i, event in enumerate(STORY) if event == Checkpointed(step, 0.1))
    return STORY[at + 1 :]


@pytest.mark.parametrize("step", [2, 4, 6])
@pytest.mark.parametrize("torn", ["", '{"n": 9, "step": 6, "ki'])
def test_a_resumed_spool_is_cut_after_the_line_of_its_checkpoint_and_becomes_the_whole_one(tmp_path, step, torn):
    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole", STORY)
    write(tmp_path, STORY)
    with (tmp_path / "spool.jsonl").open("a") as file:
        file.write(torn)
    assert write(tmp_path, rest(step), resumed_at=step) == expected


@pytest.mark.parametrize("told", range(2, len(STORY) + 1))
def test_a_spool_that_was_cut_anywhere_after_the_checkpoint_was_written_becomes_the_whole_one(tmp_path, told):
    """A process killed before it could write the checkpoint's line, or any later one."""
    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole", STORY)
    for step in (2, 4, 6):
        if STORY.index(Checkpointed(step, 0.1)) <= told:
            write(tmp_path, STORY[:told])
            assert write(tmp_path, rest(step), resumed_at=step) == expected


def test_a_missing_checkpoint_line_is_added_right_after_the_line_of_an_older_checkpoint(tmp_path):
    """Nothing need be told between two checkpoints; the older one's line must not pass for the newer one's."""
    story = [Logged(2, {"train/loss": 3.0}, 0.1), Checkpointed(2, 0.1), Checkpointed(4, 0.1), Finished(4, 32)]
    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole", story)
    write(tmp_path, story[:2])
    assert write(tmp_path, story[3:], resumed_at=4) == expected


def test_lines_of_later_steps_are_cut_even_where_the_checkpoints_own_line_is_missing(tmp_path):
    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole", STORY)
    write(tmp_path, [event for event in STORY if event != Checkpointed(4, 0.1)])
    assert write(tmp_path, rest(4), resumed_at=4) == expected


def test_a_trial_that_starts_anew_starts_its_spool_anew(tmp_path):
    write(tmp_path, STORY)
    assert write(tmp_path, STORY[:2], resumed_at=None) == write(tmp_path, STORY[:2])
    assert len(list(read_spool(tmp_path / "spool.jsonl"))) == 2


# -- One trial in this process -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(digits):
    """So few digits that an extractor is trained in no time."""
    train, holdout = (
        Images(part.pixels[:count], part.labels[:count]) for part, count in ((digits.train, 120), (digits.holdout, 40))
    )
    return DataSet(train, holdout, digits.classes, "f" * 64)


@pytest.fixture
def lab(tmp_path, tiny_trial, few):
    """lab(seed, **sections): a home, a planned trial and a shelf that holds its data."""

    def build(name="home", seed=0, **sections):
        fields = tiny_trial(**sections)
        planned = PlannedTrial(trial_id(fields, seed), "variant", seed, fields)
        return Home(tmp_path / name), planned, DataShelf({fields.data.model_dump_json(): few})

    return build


GENERATION = Generation(sampler="euler", steps=2, images=20)


def test_a_trial_runs_from_nothing_to_done_and_leaves_its_files(lab, few):
    home, planned, shelf = lab()
    progress = list(run_trial(home, planned, [], shelf))
    folder = home.trial(planned.id)
    assert progress[0].state == "running" and progress[-1] == dataclasses.replace(progress[-1], state="done", step=6)
    assert all(p.steps == 6 for p in progress)
    assert folder.state() == "done" and folder.status().attempt == 1
    lines = list(read_spool(folder.spool))
    assert [line.n for line in lines] == list(range(len(lines)))
    assert lines[-1].kind == "finished" and lines[-1].images_seen == 48
    for line in lines:
        for name in line.files:
            assert (folder.images / name).is_file()
    described = folder.description()
    assert described.id == planned.id and described.seed == 0
    assert described.data.model_dump(exclude_unset=True) == {"name": "digits", "fingerprint": "f" * 64, **few.facts}
    counts = {"train": 120, "holdout": 40, "classes": 10, "shape": [1, 8, 8], "damaged": 0}
    assert described.data.model_dump().items() >= counts.items()
    assert folder.evaluations() == {}


def test_a_finished_trial_is_not_trained_again(lab):
    home, planned, shelf = lab()
    list(run_trial(home, planned, [], shelf))
    folder = home.trial(planned.id)
    before, status = folder.spool.read_bytes(), folder.status()
    assert [p.state for p in run_trial(home, planned, [], shelf)] == ["done"]
    assert folder.spool.read_bytes() == before and folder.status() == status


def test_an_evaluation_is_done_once_and_may_be_added_later_without_training(lab):
    home, planned, shelf = lab()
    list(run_trial(home, planned, [], shelf))
    folder = home.trial(planned.id)
    before = folder.spool.read_bytes()
    assert [p.state for p in run_trial(home, planned, [GENERATION], shelf)][-1] == "done"
    key = evaluation_id(GENERATION)
    (found,) = folder.evaluations().values()
    assert list(folder.evaluations()) == [key] and found.settings == GENERATION.model_dump()
    assert any(name.startswith("fid/") for name in found.metrics)
    assert (folder.images / f"evaluation-{key}.png").is_file()
    assert folder.spool.read_bytes() == before
    written = (folder.root / "evaluations" / f"{key}.json").stat().st_mtime_ns
    list(run_trial(home, planned, [GENERATION], shelf))
    assert (folder.root / "evaluations" / f"{key}.json").stat().st_mtime_ns == written


def test_training_and_evaluation_in_one_go_end_as_done(lab):
    home, planned, shelf = lab()
    assert list(run_trial(home, planned, [GENERATION], shelf))[-1].state == "done"
    assert list(home.trial(planned.id).evaluations()) == [evaluation_id(GENERATION)]


def test_a_control_is_measured_for_what_it_has(lab):
    home, planned, shelf = lab(objective={"diffusion_weight": 0.0})
    assert list(run_trial(home, planned, [GENERATION], shelf))[-1].state == "done"
    (found,) = home.trial(planned.id).evaluations().values()
    assert {name.partition("/")[0] for name in found.metrics} == {"rfid", "psnr", "ssim"}


def test_a_failing_trial_is_recorded_and_yielded_and_not_raised(lab):
    home, planned, shelf = lab(network={"image_size": 16})
    progress = list(run_trial(home, planned, [], shelf))
    folder = home.trial(planned.id)
    assert progress[-1].state == folder.state() == "failed"
    assert "network.image_size is 16" in folder.status().error
    assert "Traceback" in (folder.root / "error.txt").read_text()
    assert not folder.is_locked()


def test_a_fault_of_ours_is_recorded_with_its_kind_and_a_second_run_can_succeed(lab, monkeypatch):
    home, planned, shelf = lab()
    with monkeypatch.context() as patch:
        patch.setattr(DataShelf, "get", lambda *_: 1 / 0)
        assert list(run_trial(home, planned, [], shelf))[-1].state == "failed"
    folder = home.trial(planned.id)
    assert folder.status().error == "ZeroDivisionError: division by zero"
    assert list(run_trial(home, planned, [], shelf))[-1].state == "done"
    assert folder.status().error is None and folder.status().attempt == 2


def test_a_failing_evaluation_leaves_the_training_result_standing(lab, monkeypatch):
    home, planned, shelf = lab()
    list(run_trial(home, planned, [], shelf))
    folder = home.trial(planned.id)
    before = folder.spool.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("dsd_lab.runs.trial_evaluations.evaluate_generation", lambda *_: 1 / 0)
        assert list(run_trial(home, planned, [GENERATION], shelf))[-1].state == "failed"
    assert list(run_trial(home, planned, [GENERATION], shelf))[-1].state == "done"
    assert plain(map(SpoolLine.model_validate_json, before.splitlines())) == plain(read_spool(folder.spool))
    assert list(folder.evaluations()) == [evaluation_id(GENERATION)]


def test_a_trial_that_diverges_is_a_result_and_is_neither_evaluated_nor_run_again(lab):
    home, planned, shelf = lab(
        optimiser={"lr": 10.0, "schedule": "constant"}, latent={"normaliser": "none"}, training={"steps": 40}
    )
    assert list(run_trial(home, planned, [GENERATION], shelf))[-1].state == "diverged"
    folder = home.trial(planned.id)
    lines = list(read_spool(folder.spool))
    assert lines[-1].kind == "diverged" and folder.status().error == lines[-1].reason
    assert folder.evaluations() == {}
    assert [p.state for p in run_trial(home, planned, [GENERATION], shelf)] == ["diverged"]


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


def test_a_trial_that_another_process_holds_is_left_to_it_and_freed_by_its_death(lab):
    home, planned, shelf = lab()
    folder = home.trial(planned.id)
    folder.root.mkdir(parents=True)
    folder.write_status(state="running", step=4)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.root / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert folder.state() == "running"
        (progress,) = run_trial(home, planned, [], shelf)
        assert (progress.state, progress.step) == ("running", 4)
        assert not folder.spool.exists() and folder.status() == Status(state="running", step=4)
    finally:
        holder.kill()
        holder.communicate()
    assert folder.state() == "interrupted"
    assert list(run_trial(home, planned, [], shelf))[-1].state == "done"


@pytest.mark.parametrize("left", [b"", b'{"state": "run', b"\0" * 40], ids=["empty", "torn", "zeros"])
def test_a_status_that_a_power_cut_left_damaged_does_not_keep_a_trial_from_its_end(lab, left):
    home, planned, shelf = lab()
    run = run_trial(home, planned, [], shelf)
    folder = home.trial(planned.id)
    while not (folder.checkpoints / "step-000000003").exists():
        next(run)
    run.close()
    (folder.root / "status.json").write_bytes(left)
    assert list(run_trial(home, planned, [], shelf))[-1].state == "done"


def test_an_interrupted_trial_ends_with_the_spool_and_images_of_an_uninterrupted_one(lab):
    every = {"log_every": 2, "checkpoint_every": 3, "images_every": 4}
    home, planned, shelf = lab("whole", observation=every)
    total = len(list(run_trial(home, planned, [], shelf)))
    whole = home.trial(planned.id)
    expected = plain(read_spool(whole.spool))
    assert total > 8
    for count in range(1, total, 2):
        home, planned, shelf = lab(f"interrupted after {count}", observation=every)
        run = run_trial(home, planned, [], shelf)
        for _ in range(count):
            next(run)
        run.close()
        folder = home.trial(planned.id)
        ended = any(line.kind == "finished" for line in read_spool(folder.spool))
        assert folder.state() == ("done" if ended else "interrupted")
        assert list(run_trial(home, planned, [], shelf))[-1].state == "done"
        assert plain(read_spool(folder.spool)) == expected
        pictures = {path.name: path.read_bytes() for path in whole.images.iterdir()}
        assert {path.name: path.read_bytes() for path in folder.images.iterdir()} == pictures


def test_a_trial_whose_newest_checkpoint_is_damaged_ends_with_the_spool_of_an_uninterrupted_one(lab):
    home, planned, shelf = lab("whole", observation={"checkpoint_every": 2})
    list(run_trial(home, planned, [], shelf))
    expected = plain(read_spool(home.trial(planned.id).spool))
    home, planned, shelf = lab("damaged", observation={"checkpoint_every": 2})
    folder = home.trial(planned.id)
    run = run_trial(home, planned, [], shelf)
    while not (folder.checkpoints / "step-000000004").exists():
        next(run)
    run.close()
    (folder.checkpoints / "step-000000004" / "tensors.safetensors").write_bytes(b"")
    assert list(run_trial(home, planned, [], shelf))[-1].state == "done"
    assert plain(read_spool(folder.spool)) == expected
