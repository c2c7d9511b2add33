"""Checkpoints: what is saved comes back; what is damaged is passed over; what is malicious is never executed."""

import contextlib
import hashlib
import json
import os
import pickle

import pytest
import torch

from dsd_lab.core.training import checkpoints
from dsd_lab.core.training.checkpoints import (
    flatten_optimiser,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    restore_optimiser,
    save_checkpoint,
)
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput, CorruptCheckpoint
from dsd_lab.evaluation.sampling import load_network

CPU = torch.device("cpu")
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"


def tensors(seed=0):
    source = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(3, 4, generator=source),
        "wide": torch.randn(2, 3, generator=source, dtype=torch.float64),
        "half": torch.randn(5, generator=source).bfloat16(),
        "transposed": torch.randn(4, 3, generator=source).T,
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
    }


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


def three(folder):
    """Checkpoints of steps 5, 10 and 15."""
    return [save_checkpoint(folder, step, tensors(step), {"at": step}, keep=3) for step in (5, 10, 15)]


# -- Damage: each takes the newest checkpoint's folder ------------------------------------------------


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(folder, **entries):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | entries))


DAMAGE = {
    "tensors truncated": lambda f: truncate(f / TENSORS),
    "tensors longer": lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes() + b"\0"),
    "last byte of the tensors flipped": lambda f: flip(f / TENSORS, -1),
    "first byte of the tensors flipped": lambda f: flip(f / TENSORS, 0),
    "tensors of zero length": lambda f: (f / TENSORS).write_bytes(b""),
    "tensors missing": lambda f: (f / TENSORS).unlink(),
    "manifest missing": lambda f: (f / MANIFEST).unlink(),
    "manifest of zero length": lambda f: (f / MANIFEST).write_bytes(b""),
    "manifest truncated": lambda f: truncate(f / MANIFEST),
    "manifest is a list": lambda f: (f / MANIFEST).write_text("[]"),
    "manifest is null": lambda f: (f / MANIFEST).write_text("null"),
    "manifest is not text": lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "another state": lambda f: edit_manifest(f, state={"at": 14}),
    "another step": lambda f: edit_manifest(f, step=14),
    "manifest without state": lambda f: edit_manifest(f, state=None),
    "manifest of a format that never was": lambda f: edit_manifest(f, format=checkpoints.FORMAT - 1),
    "tensors are a folder": lambda f: ((f / TENSORS).unlink(), (f / TENSORS).mkdir()),
    "nothing in it": lambda f: [path.unlink() for path in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_f5_a_damaged_newest_checkpoint_is_named_so_and_the_older_one_is_taken(tmp_path, damage):
    *_, newest = three(tmp_path)
    DAMAGE[damage](newest)
    with pytest.raises(CorruptCheckpoint, match="step-000000015"):
        load_checkpoint(newest)
    path, found, state = newest_checkpoint(tmp_path)
    assert path.name == "step-000000010" and state == {"at": 10}
    assert_equal(found, tensors(10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-000000015", "step-000000005", "step-000000010"]


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed_or_changes_nothing(tmp_path):
    path = save_checkpoint(tmp_path, 1, tensors(), {"at": 1, "device": "cpu", "sum": 0.1}, keep=1)
    for position in range((path / MANIFEST).stat().st_size):
        flip(path / MANIFEST, position)
        with contextlib.suppress(CorruptCheckpoint):
            assert load_checkpoint(path)[1] == {"at": 1, "device": "cpu", "sum": 0.1}
        flip(path / MANIFEST, position)
    load_checkpoint(path)


def test_a_manifest_of_a_version_that_kept_no_digest_of_it_is_read(tmp_path):
    path = save_checkpoint(tmp_path, 1, tensors(), {"at": 1}, keep=1)
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["manifest_sha256"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert load_checkpoint(path)[1] == {"at": 1}


@pytest.mark.parametrize("at", ["every 97th byte"])
def test_a_flipped_bit_anywhere_in_the_tensors_is_noticed(tmp_path, at):
    path = save_checkpoint(tmp_path, 1, tensors(), {}, keep=1)
    size = (path / TENSORS).stat().st_size
    for position in range(0, size, 97):
        flip(path / TENSORS, position)
        with pytest.raises(CorruptCheckpoint):
            load_checkpoint(path)
        flip(path / TENSORS, position)
    load_checkpoint(path)


def test_a_checkpoint_of_a_newer_format_is_refused_by_its_number_and_left_as_it_is(tmp_path):
    *_, newest = three(tmp_path)
    edit_manifest(newest, format=checkpoints.FORMAT + 1)
    with pytest.raises(BadInput, match="step-000000015: format 2 is newer than this program reads, which is 1"):
        newest_checkpoint(tmp_path)
    assert newest in list_checkpoints(tmp_path)


def test_damage_to_all_checkpoints_leaves_none(tmp_path):
    for path in three(tmp_path):
        truncate(path / TENSORS)
    assert newest_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path) == []


def test_a_checkpoint_that_is_damaged_a_second_time_is_passed_over_again(tmp_path):
    for _ in range(2):
        *_, newest = three(tmp_path)
        truncate(newest / TENSORS)
        found = newest_checkpoint(tmp_path)
        assert found is not None and found[0].name == "step-000000010"


# -- Whole checkpoints ------------------------------------------------------------------------------


def test_tensors_and_state_come_back_as_they_were(tmp_path):
    state = {"summed": 3, "data": "fingerprint", "nested": {"x": [1, 2.5, None, True]}}
    path = save_checkpoint(tmp_path / "made" / "on the way", 12, tensors(), state, keep=2)
    found, found_state = load_checkpoint(path)
    assert_equal(found, tensors())
    assert found_state == state
    newest = newest_checkpoint(tmp_path / "made" / "on the way")
    assert newest[0] == path and newest[2] == state


def test_newest_is_by_step_and_not_by_the_time_of_writing(tmp_path):
    for step in (100, 9, 1000):
        save_checkpoint(tmp_path, step, tensors(step), {"at": step}, keep=5)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [1000, 100, 9]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_checkpoints_are_kept_and_no_others(tmp_path, keep):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, tensors(step), {}, keep)
        assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == list(range(step, max(0, step - keep), -1))
    assert len(list(tmp_path.iterdir())) == keep


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save_checkpoint(tmp_path, 5, tensors(0), {"take": 1}, keep=2)
    path = save_checkpoint(tmp_path, 5, tensors(1), {"take": 2}, keep=2)
    found, state = load_checkpoint(path)
    assert state == {"take": 2}
    assert_equal(found, tensors(1))


def test_what_a_crash_left_half_written_is_ignored_and_cleared_away(tmp_path):
    save_checkpoint(tmp_path, 5, tensors(5), {"at": 5}, keep=2)
    half = tmp_path / ".writing-000000010"
    half.mkdir()
    (half / TENSORS).write_bytes(b"half")
    assert newest_checkpoint(tmp_path)[2] == {"at": 5}
    assert half.is_dir()
    save_checkpoint(tmp_path, 10, tensors(10), {"at": 10}, keep=2)
    assert not half.exists()
    assert newest_checkpoint(tmp_path)[2] == {"at": 10}


@pytest.mark.parametrize("fails_at", ["_write_durably", "sync_folder", "save"])
def test_a_save_that_fails_leaves_the_older_checkpoints_and_nothing_of_its_own(tmp_path, monkeypatch, fails_at):
    save_checkpoint(tmp_path, 5, tensors(5), {"at": 5}, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, fails_at, full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, 10, tensors(10), {"at": 10}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    assert newest_checkpoint(tmp_path)[2] == {"at": 5}


def test_state_that_is_not_json_is_refused_and_leaves_nothing(tmp_path):
    for state in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            save_checkpoint(tmp_path, 5, tensors(), state, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_newest_checkpoint_in_an_empty_or_missing_folder(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_an_optimiser_goes_on_as_if_it_had_not_been_saved(tmp_path):
    def problem():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def step(layer, optimiser, count):
        for i in range(count):
            optimiser.zero_grad()
            layer(torch.full((4, 3), float(i + 1))).square().sum().backward()
            optimiser.step()

    (whole, whole_optimiser), (first, first_optimiser) = problem(), problem()
    step(whole, whole_optimiser, 3)
    step(first, first_optimiser, 3)
    path = save_checkpoint(tmp_path, 3, flatten_optimiser(first_optimiser), {}, keep=1)
    second, second_optimiser = problem()
    second.load_state_dict(first.state_dict())
    restore_optimiser(second_optimiser, load_checkpoint(path)[0])
    step(whole, whole_optimiser, 2)
    step(second, second_optimiser, 2)
    assert torch.equal(whole.weight, second.weight) and torch.equal(whole.bias, second.bias)


# -- Malice --------------------------------------------------------------------------------------------


class Malice:
    """Unpickling this makes a folder."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def plant(folder, canary, kind):
    """Put a pickle in place of the tensors, with a manifest that vouches for it."""
    if kind == "pickle":
        raw = pickle.dumps(Malice(canary))
        (folder / TENSORS).write_bytes(raw)
    else:
        torch.save({"network.x": Malice(canary)}, folder / TENSORS)
        raw = (folder / TENSORS).read_bytes()
    edit_manifest(folder, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest(), manifest_sha256=None)


@pytest.fixture(params=["pickle", "torch.save"])
def planted(request, tmp_path, tiny_trial, digits):
    """A trained trial whose newest checkpoint is malicious, and the canary that it would make."""
    folder, canary = tmp_path / "checkpoints", tmp_path / "canary"
    list(Trainer(tiny_trial(), 0, digits, CPU, folder).run())
    plant(list_checkpoints(folder)[0], canary, request.param)
    return folder, canary


def test_the_planted_pickle_would_bite(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


def test_a_pickle_in_place_of_tensors_is_refused_and_not_executed(planted):
    folder, canary = planted
    with pytest.raises(CorruptCheckpoint, match="step-000000006"):
        load_checkpoint(list_checkpoints(folder)[0])
    assert not canary.exists()


def test_a_pickle_in_place_of_tensors_is_passed_over_by_resuming(planted, tiny_trial, digits):
    folder, canary = planted
    trainer = Trainer(tiny_trial(), 0, digits, CPU, folder)
    assert trainer.resume() and trainer.step == 3
    assert not canary.exists()
    assert newest_checkpoint(folder)[0].name == "step-000000003"


def test_a_pickle_in_place_of_tensors_is_not_evaluated(planted, tiny_trial, digits):
    folder, canary = planted
    for weights in ("ema", "trained"):
        with pytest.raises(CorruptCheckpoint):
            load_network(tiny_trial(), folder, digits, CPU, weights)
    assert not canary.exists()


# -- Networks from checkpoints ---------------------------------------------------------------------


def test_the_evaluated_network_has_the_last_steps_weights_averaged_or_as_trained(tmp_path, tiny_trial, digits):
    trainer = Trainer(tiny_trial(), 0, digits, CPU, tmp_path)
    list(trainer.run())
    for weights, expected in (("ema", trainer.average), ("trained", trainer.network)):
        found = load_network(tiny_trial(), tmp_path, digits, CPU, weights)
        assert not found.training
        assert_equal(found.state_dict(), expected.state_dict())


def test_a_trial_without_checkpoints_is_an_error_that_names_the_folder(tmp_path, tiny_trial, digits):
    with pytest.raises(CorruptCheckpoint, match="checkpoints"):
        load_network(tiny_trial(), tmp_path / "checkpoints", digits, CPU, "ema")


def test_a_whole_checkpoint_of_another_network_is_an_error_that_names_it(tmp_path, tiny_trial, digits):
    list(Trainer(tiny_trial(), 0, digits, CPU, tmp_path).run())
    wider = Trainer(tiny_trial(network={"width": 32}), 0, digits, CPU, tmp_path)
    with pytest.raises(CorruptCheckpoint, match="step-000000006"):
        wider.resume()
