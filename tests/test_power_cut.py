"""A power cut at any moment costs time and nothing else, and no file that it leaves empty or torn stops anything."""

import os
import shutil
import subprocess
import threading

import pytest
from power import KINDS, Disk, restore
from sweeping import DEADLINE, command, finish, in_child, outcome, train_here, wait_until, write_spec

from dsd_lab.core.data.progress import tell
from dsd_lab.core.training.checkpoints import list_checkpoints
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.files.locks import locked
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.runs.spool_writer import read_spool
from dsd_lab.specs.loading import load_sweep

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cut(whole, tmp_path_factory):
    """Every image that a disk may hold while a sweep of one trial is recorded, trained and ended."""
    root = tmp_path_factory.mktemp("disk")
    with Disk(root).watched() as disk:
        home = Home(root / "home")
        home.prepare()
        home.write_manifest(manifest_of(load_sweep(whole.spec)))
        finish(home, whole.trial)
    assert outcome(home, whole.trial.id) == whole.outcome
    return disk.images


def resumed(image, folder, whole, shelf):
    restore(image, folder)
    home = Home(folder / "home")
    for progress in run_trial(home, whole.trial, [], shelf):
        last = progress
    assert last.state == "done"
    assert outcome(home, whole.trial.id) == whole.outcome
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_between_any_two_writes_ends_with_the_weights_and_records_of_the_undisturbed_run(
    kind, cut, whole, tmp_path
):
    shelf = DataShelf()
    images = cut[kind]
    assert len(images) > 20
    chosen = images if os.environ.get("DSD_LAB_EVERY_CUT") else images[:: max(1, len(images) // 12)] + images[-3:]
    for number, image in enumerate(chosen):
        resumed(image, tmp_path / str(number), whole, shelf)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_checkpoint_stands_on_is_on_the_disk_before_it(kind, cut, whole):
    """At every moment: the lines that a checkpoint counts, their pictures, trial.json, the status and the manifest."""
    trial = f"home/trials/{whole.trial.id}"
    steps = set()
    for image in cut[kind]:
        if f"{trial}/trial.json" in image:
            assert image.get("home/sweeps/tiny/manifest.json")
        for place in (name for name in image if "/checkpoints/step-" in name and name.endswith("manifest.json")):
            if not image[place] or not image[place].endswith(b"}"):
                continue  # its older name was taken away
            steps.add(place.split("/")[-2])
            step = int(place.split("/")[-2].removeprefix("step-"))
            lines = [line for line in image[f"{trial}/spool.jsonl"].split(b"\n") if line.startswith(b"{")]
            wanted = [e for e in whole.outcome[2] if e["step"] <= step and e["kind"] != "finished"]
            wanted = wanted[: -1 if wanted[-1]["kind"] == "checkpoint" else None]
            assert len(lines) >= len(wanted)
            assert image[f"{trial}/trial.json"] and image[f"{trial}/status.json"]
            for picture in (name for entry in wanted for name in entry.get("files", [])):
                assert image[f"{trial}/images/{picture}"] == whole.outcome[3][picture]
    assert steps == {"step-000000004", "step-000000008", "step-000000012"}


def test_records_that_a_power_cut_took_from_a_home_that_did_not_flush_them_are_made_again(whole, home):
    """The newest checkpoint counts lines that are not there: training goes on from the one before."""
    folder = home.trial(whole.trial.id)
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (folder.checkpoints / "step-000000008").exists():
        next(progress)
    progress.close()
    lines = folder.spool.read_bytes().splitlines(keepends=True)
    at = next(i for i, entry in enumerate(read_spool(folder.spool)) if (entry.step, entry.kind) == (6, "images"))
    folder.spool.write_bytes(b"".join(lines[:at]) + bytes(len(lines[at])))
    steps = [p.step for p in run_trial(home, whole.trial, [], DataShelf())]
    assert steps[1] == 6 and outcome(home, whole.trial.id) == whole.outcome


@pytest.mark.parametrize("left", [None, 0.0, 0.5], ids=["removed", "empty", "torn"])
@pytest.mark.parametrize("name", ["spool.jsonl", "status.json"])
def test_an_ended_trial_that_has_lost_its_records_or_its_status_comes_to_the_same_end_again(name, left, whole, home):
    folder = home.trial(whole.trial.id)
    assert finish(home, whole.trial)[-1] == "done"
    path = folder.root / name
    path.unlink() if left is None else os.truncate(path, int(left * path.stat().st_size))
    assert folder.state() in ("interrupted", "pending")
    assert finish(home, whole.trial)[-1] == "done"
    assert outcome(home, whole.trial.id) == whole.outcome and folder.state() == "done"


@pytest.mark.parametrize("left", [b"", b"\x89PNG\r\n\x1a\n"], ids=["empty", "torn"])
def test_a_picture_that_a_power_cut_left_damaged_is_drawn_again(left, whole, home):
    folder = home.trial(whole.trial.id)
    progress = run_trial(home, whole.trial, [], DataShelf())
    while not (folder.checkpoints / "step-000000008").exists():
        next(progress)
    progress.close()
    next(folder.images.glob("samples-*.png")).write_bytes(left)
    assert finish(home, whole.trial)[-1] == "done"
    assert outcome(home, whole.trial.id) == whole.outcome


MOUNT = ("-o", "loop,data=writeback,noauto_da_alloc,commit=300")
"""A file system that flushes nothing by itself: what lies on it after a cut is what was asked to be flushed."""


@pytest.mark.slow
def test_an_image_of_a_real_file_system_taken_at_any_moment_goes_on_to_the_undisturbed_end(tmp_path):
    disk, place = tmp_path / "disk.img", tmp_path / "mounted"
    place.mkdir()
    disk.write_bytes(b"")
    os.truncate(disk, 48 * 2**20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], capture_output=True).returncode == 0
    if not made or subprocess.run(["mount", *MOUNT, str(disk), str(place)], capture_output=True).returncode:
        pytest.skip("this machine allows no mount of a file")
    spec = write_spec(tmp_path, base={"training": {"steps": 400}, "observation": {"checkpoint_every": 20}})
    plan = load_sweep(spec)
    (trial,) = train_here(Home(tmp_path / "whole"), spec).trials
    whole = outcome(Home(tmp_path / "whole"), trial.id)
    home, copies = Home(place / "home"), []
    try:
        train = command("train", spec, "--variant", "dsd", "--no-tracking", "--home", home.root)
        process = subprocess.Popen(train, stdout=subprocess.DEVNULL, text=True)
        for step in range(40, 400, 60):
            reached = lambda step=step: (home.trial(trial.id).checkpoints / f"step-{step:09d}").exists()  # noqa: E731
            wait_until(reached, f"step {step} is reached")
            copies.append(shutil.copy(disk, tmp_path / f"cut-{step}.img"))
        assert process.wait(DEADLINE) == 0
        copies.append(shutil.copy(disk, tmp_path / "cut-end.img"))  # nothing was unmounted, nor flushed
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    for copy in copies:
        subprocess.run(["mount", *MOUNT, str(copy), str(place)], check=True, capture_output=True)
        try:
            before = list_checkpoints(home.trial(trial.id).checkpoints)
            assert before
            assert finish(home, plan.trials[0])[-1] == "done"
            assert outcome(home, trial.id) == whole
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


# -- The watchdog --------------------------------------------------------------------------------------


def test_data_that_takes_longer_to_read_than_a_step_may_take_does_not_end_the_trial(tmp_path, home):
    """Reading is stretched beyond `resources.patience`; as long as it says how far it is, it is not taken for a hang."""
    spec = write_spec(tmp_path, base={"resources": {"patience": 1.0}})
    (trial,) = load_sweep(spec).trials

    class Slow(DataShelf):
        def get(self, trial, home):
            for done in range(8):
                threading.Event().wait(0.35)
                tell("images read", done, 8)
            return super().get(trial, home)

    def work():
        assert [p.state for p in run_trial(home, trial, [], Slow())][-1] == "done"

    assert in_child(work) == 0
    assert not (home.trial(trial.id).root / "hang.txt").exists()


def test_data_that_another_process_reads_is_waited_for_longer_than_a_step_may_take(tmp_path, home):
    spec = write_spec(tmp_path, base={"resources": {"patience": 1.0}})
    (trial,) = load_sweep(spec).trials
    taken = threading.Event()

    class Shared(DataShelf):
        def get(self, trial, home):
            taken.wait()
            with locked(tmp_path / "lock"):
                return super().get(trial, home)

    def hold():
        with locked(tmp_path / "lock"):
            taken.set()
            threading.Event().wait(2.5)

    def work():
        threading.Thread(target=hold, daemon=True).start()
        assert [p.state for p in run_trial(home, trial, [], Shared())][-1] == "done"

    assert in_child(work) == 0
    assert not (home.trial(trial.id).root / "hang.txt").exists()


def test_f17_a_step_that_hangs_still_ends_the_process_and_says_where(tmp_path, home, monkeypatch):
    spec = write_spec(tmp_path, base={"resources": {"patience": 1.0}})
    (trial,) = load_sweep(spec).trials
    monkeypatch.setattr(Trainer, "train_step", lambda self: threading.Event().wait())
    assert in_child(lambda: list(run_trial(home, trial, [], DataShelf()))) == 1
    assert "in run\n" in (home.trial(trial.id).root / "hang.txt").read_text()
