"""Streams: the numbers of resident images, in the same order, ahead of the step, with nothing left behind."""

import gc
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading

import pytest
import torch
from picturing import changed, encoded, pictures, write_folder, write_parquet

from dsd_lab.core.data import BATCHES_AHEAD, Images, StreamedImages, load_data, records, streaming
from dsd_lab.core.data import assembly as loading
from dsd_lab.core.data import survey as surveying
from dsd_lab.core.data.progress import listening
from dsd_lab.core.randomness import batch_indices
from dsd_lab.core.training.events import Logged, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BadInput, NoResources
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.files.sha256 import Sha256
from dsd_lab.specs.trial import Generation

CPU = torch.device("cpu")


def written(tmp_path, source, colour=True, count=40):
    arrays, labels = pictures(count, colour), [i % 4 for i in range(count)]
    if source == "folder":
        return write_folder(tmp_path / "set", arrays, labels)
    write_parquet(tmp_path / "set" / "train-1.parquet", arrays[: count // 2], labels[: count // 2])
    return write_parquet(tmp_path / "set" / "train-2.parquet", arrays[count // 2 :], labels[count // 2 :])


@pytest.fixture
def streamed(tmp_path):
    """streamed(source, **fields): a generated set of 40 images of 8 pixels, streamed."""

    def build(source="folder", cache=None, **fields):
        return load_data(changed(written(tmp_path, source), memory="stream", **fields), cache)

    return build


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


# -- The same numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("source", ["folder", "parquet"])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_streamed_images_are_the_resident_ones_bit_for_bit(tmp_path, source, colour, workers):
    spec = changed(written(tmp_path, source, colour), workers=workers)
    there, here = load_data(changed(spec, memory="resident")), load_data(changed(spec, memory="stream"), tmp_path)
    assert isinstance(here.train, StreamedImages) and isinstance(there.train, Images)
    assert here.fingerprint == there.fingerprint and here.facts == there.facts | {"resident": False}
    for step in range(8):
        ours, theirs = (d.train.at(batch_indices(3, step, 12, len(d.train)), CPU) for d in (here, there))
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        here.train.prefetch(batch_indices(3, later, 12, len(here.train)) for later in (step + 1, step + 2))
    for size in (1, 7, 100):
        pairs = list(zip(here.train.batches(size), there.train.batches(size), strict=True))
        assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)
        assert torch.equal(torch.cat([ours for (ours, _), _ in pairs]), there.train.pixels)


def mixed(tmp_path):
    """The first image is grey, a later one in colour, one is damaged."""
    arrays = [*pictures(5, False), *pictures(6, True), b"no image", *pictures(4, False, seed=2)]
    return changed(write_folder(tmp_path / "set", arrays, [i % 2 for i in range(16)]), damaged="skip")


@pytest.mark.parametrize("own", [True, False])
def test_grey_images_before_colour_and_damage_give_the_same_stream(tmp_path, own):
    spec = mixed(tmp_path)
    if own:
        (tmp_path / "set").rename(tmp_path / "train")
        (tmp_path / "set").mkdir()
        (tmp_path / "train").rename(tmp_path / "set" / "train")
        write_folder(tmp_path / "set", [*pictures(3, False, seed=5), b"no"], [0, 1, 0, 1], split="val")
    here, there = (load_data(changed(spec, memory=memory)) for memory in ("stream", "resident"))
    assert here.fingerprint == there.fingerprint and here.damaged == there.damaged and len(here.damaged) == 1 + own
    assert here.facts == there.facts | {"resident": False} and here.channels == 3
    for part in ("train", "holdout"):
        found = torch.cat([pixels for pixels, _ in getattr(here, part).batches(3)])
        assert torch.equal(found, getattr(there, part).pixels)


def trained(trainer, steps=None):
    """Events without clock times, up to a step."""
    seen = []
    for event in trainer.run():
        if isinstance(event, Logged | Probed):
            seen.append((event.step, dict(event.metrics)))
        if steps is not None and event.step >= steps and isinstance(event, Logged):
            break
    return seen


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_trial_on_streamed_images_is_the_trial_on_resident_ones(tmp_path, tiny_trial, source):
    spec, outcomes = written(tmp_path, source), []
    for memory, workers in (("resident", 4), ("stream", 0), ("stream", 4)):
        data = load_data(changed(spec, memory=memory, workers=workers))
        trainer = Trainer(tiny_trial(), 0, data, CPU)
        outcomes.append((trained(trainer), trainer.network.state_dict()))
    for seen, weights in outcomes[1:]:
        assert seen == outcomes[0][0]
        assert all(torch.equal(weights[k], v) for k, v in outcomes[0][1].items())


@pytest.mark.parametrize("stop", range(2, 6))
def test_a_stream_that_is_taken_up_at_any_step_is_bit_equal(tmp_path, tiny_trial, streamed, stop):
    data = streamed()
    trial = tiny_trial(observation={"log_every": 1, "checkpoint_every": 1})
    whole = Trainer(trial, 0, data, CPU)
    trained(whole)
    trained(Trainer(trial, 0, data, CPU, tmp_path / "trial"), stop)
    # Another process, and resident this time: where the images lie is no part of the trial.
    other = load_data(changed(written(tmp_path, "folder"), memory="resident" if stop % 2 else "stream"))
    again = Trainer(trial, 0, other, CPU, tmp_path / "trial")
    assert again.resume() and again.step == stop - 1
    trained(again)
    assert all(torch.equal(again.network.state_dict()[k], v) for k, v in whole.network.state_dict().items())


def test_an_evaluation_of_a_stream_is_that_of_resident_images(tmp_path, tiny_trial, streamed):
    data, found = streamed(), []
    Trainer(tiny_trial(), 0, data, CPU, tmp_path / "trial").run()
    trainer = Trainer(tiny_trial(), 0, data, CPU, tmp_path / "trial")
    trainer.save()
    for part in (data, load_data(changed(written(tmp_path, "folder"), memory="resident"))):
        cache = tmp_path / f"cache{len(found)}"
        found.append(evaluate_generation(Generation(steps=2), tiny_trial(), tmp_path / "trial", part, CPU, cache)[0])
    assert found[0] == found[1] and len(found[0]) > 5


# -- Ahead of the step, and bounded -------------------------------------------------------------------


def test_batches_are_decoded_before_they_are_asked_for_and_no_more_than_was_announced(streamed):
    images, lock, decoded = streamed().train, threading.Lock(), []
    inner = images._decode

    def counted(i):
        with lock:
            decoded.append(i)
        return inner(i)

    images._decode = counted
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4]), torch.tensor([5, 6, 7])]
    images.prefetch(batches[:2])
    for _, parts in images._ahead.values():
        for part in parts:
            part.result()
    assert sorted(decoded) == [0, 1, 2, 3, 4]
    images.at(batches[0], CPU)
    assert sorted(decoded) == [0, 1, 2, 3, 4]  # nothing twice
    images.prefetch(batches[1:])
    images.prefetch([])
    assert not images._ahead  # what nobody asks for is let go


def test_training_announces_the_next_steps_and_nothing_beyond_the_last(tiny_trial, streamed):
    data, most = streamed(), 0
    trainer = Trainer(tiny_trial(), 0, data, CPU)
    for event in trainer.run():
        most = max(most, len(data.train._ahead))
        last = event
    assert most == BATCHES_AHEAD and not data.train._ahead and last.step == 6


def test_threads_end_with_the_images_and_none_are_started_for_resident_ones(tmp_path, streamed):
    before = set(decoding_threads())
    load_data(changed(written(tmp_path, "folder"), memory="resident"))
    data = streamed(workers=3)
    assert set(decoding_threads()) <= before  # those of the survey have ended
    data.train.at(torch.arange(9), CPU)
    started = set(decoding_threads()) - before
    assert 0 < len(started) <= 3
    del data
    gc.collect()
    for thread in started:
        thread.join(10)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.integration
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_files_are_closed(tmp_path, streamed, source):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    data = streamed(source, tmp_path / "cache")
    list(data.train.batches(5))
    del data
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_auto_streams_what_would_take_more_than_the_limit(tmp_path, monkeypatch):
    spec = written(tmp_path, "folder")
    assert isinstance(load_data(spec).train, Images)
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 40 * 3 * 8 * 8)
    assert isinstance(load_data(spec).train, Images)
    monkeypatch.setattr(loading, "RESIDENT_BYTES", 40 * 3 * 8 * 8 - 1)
    assert isinstance(load_data(spec).train, StreamedImages)
    assert isinstance(load_data(changed(spec, memory="resident")).train, Images)


# -- The survey is remembered --------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_survey_is_made_once_for_unchanged_files(tmp_path, streamed, source, monkeypatch):
    first, cache = streamed(source, tmp_path / "cache"), tmp_path / "cache"
    spec = changed(written(tmp_path, source), memory="stream")
    first = load_data(spec, cache)
    monkeypatch.setattr(streaming, "survey", None)
    monkeypatch.setattr(records, "_packed", None)
    again = load_data(spec, cache)
    assert again.fingerprint == first.fingerprint and again.facts == first.facts
    assert torch.equal(next(again.train.batches(50))[0], next(first.train.batches(50))[0])


def test_a_survey_holds_for_other_times_and_another_place_of_the_same_files(tmp_path, monkeypatch):
    spec, cache = changed(written(tmp_path, "folder"), memory="stream"), tmp_path / "cache"
    first = load_data(spec, cache)
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere")
    for path in (tmp_path / "set").rglob("*.png"):
        os.utime(path, (1, 1))
    monkeypatch.setattr(streaming, "survey", None)
    assert load_data(spec, cache).fingerprint == first.fingerprint
    moved = load_data(changed(spec, path=str(tmp_path / "elsewhere")), cache)
    assert torch.equal(next(moved.train.batches(50))[0], next(first.train.batches(50))[0])
    monkeypatch.undo()
    (tmp_path / "elsewhere" / "class001" / "00001.png").rename(tmp_path / "elsewhere" / "class001" / "99999.png")
    assert load_data(changed(spec, path=str(tmp_path / "elsewhere")), cache).fingerprint != first.fingerprint


def test_reading_says_how_far_it_is_to_whoever_listens(tmp_path, monkeypatch):
    spec, heard = written(tmp_path, "folder"), []
    monkeypatch.setattr(surveying, "_REPORT_EVERY", 10)
    monkeypatch.setattr(loading, "_REPORT_EVERY", 10)
    with listening(lambda *word: heard.append(word)):
        load_data(changed(spec, memory="stream"), tmp_path / "cache")
        assert {("images decoded", 10, 40), ("images decoded", 40, 40), ("files hashed", 40, 40)} <= set(heard)
        heard.clear()
        load_data(spec)
        assert heard == [("images decoded", done, 40) for done in (0, 10, 20, 30)]
    heard.clear()
    load_data(spec)
    assert heard == []


def killed_after(monkeypatch, images):
    """What counts the images that are surveyed, and stops like Ctrl-C at one; every one is noted."""
    seen, inner = [], surveying._counted

    def counted(*given):
        seen.append(1)
        if len(seen) == images:
            raise KeyboardInterrupt
        return inner(*given)

    monkeypatch.setattr(surveying, "_SAVE_EVERY", 0)
    monkeypatch.setattr(surveying, "_counted", counted)
    return seen


@pytest.mark.parametrize("stop", [1, 7, 20])
@pytest.mark.parametrize("own", [True, False])
def test_a_survey_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch, stop, own):
    """Over damaged images, the first in colour and the end of a split, all of which begin another pass or part."""
    arrays = [*pictures(5, False), *pictures(12, True), b"no image", *pictures(14, False, seed=2), b"", *pictures(3)]
    spec = write_folder(tmp_path / "set", arrays, [i % 2 for i in range(36)], split="train" if own else "")
    spec = changed(spec, damaged="skip", memory="stream", workers=0)
    if own:
        write_folder(tmp_path / "set", pictures(6, seed=5), [0, 1] * 3, split="val")
    with monkeypatch.context() as patch:
        everything = killed_after(patch, 10**9)
        whole = load_data(spec)
    seen = killed_after(monkeypatch, stop)
    for _ in range(3):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            load_data(spec, tmp_path / "cache")
    monkeypatch.undo()
    seen = killed_after(monkeypatch, 10**9)
    found = load_data(spec, tmp_path / "cache")
    assert found.fingerprint == whole.fingerprint and found.facts == whole.facts and found.damaged == whole.damaged
    saved = 3 * (stop - 1) if Sha256().state else 0
    assert len(seen) <= len(everything) - saved + 3  # the first in colour ends a pass before it is noted
    assert not list((tmp_path / "cache").glob("*.part*"))


def test_a_survey_does_not_go_on_from_a_note_that_was_altered(tmp_path, monkeypatch):
    spec, cache = changed(written(tmp_path, "folder"), memory="stream", workers=0), tmp_path / "cache"
    whole = load_data(spec)
    if Sha256().state is None:
        pytest.skip("OpenSSL is linked into Python, so that nothing is noted")
    killed_after(monkeypatch, 25)
    with pytest.raises(KeyboardInterrupt):
        load_data(spec, cache)
    (note,) = cache.glob("survey-*.part.json")
    note.write_text(note.read_text().replace('"damaged"', '"found"'))
    monkeypatch.undo()
    seen = killed_after(monkeypatch, 10**9)
    assert load_data(spec, cache).fingerprint == whole.fingerprint and len(seen) >= 40


def test_the_state_of_a_hash_can_be_written_down_or_is_said_not_to_be():
    text = os.urandom(100_000)
    first = Sha256()
    first.update(text[:777])
    state = first.state
    first.update(text[777:])
    assert first.hexdigest() == first.hexdigest() == hashlib.sha256(text).hexdigest()
    if state is None:  # OpenSSL is linked into Python
        with pytest.raises(ValueError, match="cannot be taken up here"):
            Sha256(bytes(112))
        return
    second = Sha256(state)
    second.update(text[777:])
    assert second.hexdigest() == first.hexdigest()
    for place, value in ((104, 2**31), (104, 10), (108, 64), (32, 777 * 8 + 1)):
        forged = bytearray(state)
        struct.pack_into("=I", forged, place, value)
        with pytest.raises(ValueError, match="cannot be taken up here"):
            Sha256(bytes(forged))  # OpenSSL would write where the counter says


def test_a_file_that_changed_makes_another_survey_and_is_refused_at_resume(tmp_path, tiny_trial):
    spec, cache = changed(written(tmp_path, "folder"), memory="stream"), tmp_path / "cache"
    Trainer(tiny_trial(), 0, load_data(spec, cache), CPU, tmp_path / "trial").save()
    (tmp_path / "set" / "class001" / "00001.png").write_bytes(encoded(pictures(1, seed=9)[0]))
    again = Trainer(tiny_trial(), 0, load_data(spec, cache), CPU, tmp_path / "trial")
    with pytest.raises(BadInput, match="trained on other images"):
        again.resume()


@pytest.mark.parametrize("fields", [{"size": 4}, {"holdout": 0.5}, {"crop": "centre"}, {"damaged": "skip"}])
def test_other_settings_make_a_survey_of_their_own(tmp_path, fields):
    spec, cache = changed(written(tmp_path, "folder"), memory="stream"), tmp_path / "cache"
    load_data(spec, cache)
    load_data(changed(spec, workers=1), cache)
    assert len(list(cache.glob("survey-*.json"))) == 1
    load_data(changed(spec, **fields), cache)
    assert len(list(cache.glob("survey-*.json"))) == 2


def survey_with(**fields):
    sound = {"shape": [3, 8, 8], "levels": [[1] * 256] * 3, "fingerprint": "f", "damaged": [{}]}
    return json.dumps(sound | fields).encode()


DAMAGED = [
    *(b"", b'{"shape": [3', b"[]", b"{}", b"[" * 100_000),
    *(survey_with(levels="x"), survey_with(fingerprint=1), survey_with(shape=[3, 8]), survey_with(shape=8)),
    *(survey_with(levels=[[1]] * 3), survey_with(damaged=[]), survey_with(damaged=[{"0": 1}])),
]


@pytest.mark.parametrize("left", DAMAGED, ids=range(len(DAMAGED)))
def test_a_survey_that_is_damaged_or_is_none_is_made_again(tmp_path, left):
    spec, cache = changed(written(tmp_path, "folder"), memory="stream"), tmp_path / "cache"
    fingerprint = load_data(spec, cache).fingerprint
    (survey,) = cache.glob("survey-*.json")
    whole = survey.read_bytes()
    survey.write_bytes(left)
    assert load_data(spec, cache).fingerprint == fingerprint and survey.read_bytes() == whole


def test_an_image_that_goes_away_while_training_is_named(tmp_path, streamed):
    data = streamed()
    (tmp_path / "set" / "class001" / "00005.png").unlink()
    with pytest.raises(BadInput, match=r"class001/00005\.png: damaged image: No such file"):
        list(data.train.batches(10)) + list(data.holdout.batches(10))


def test_an_image_that_changes_its_size_while_training_is_named(tmp_path, streamed):
    data = streamed()
    (tmp_path / "set" / "class001" / "00005.png").write_bytes(encoded(pictures(1, size=9)[0]))
    with pytest.raises(BadInput, match=r"00005\.png: \(3, 9, 9\) pixels where the survey"):
        list(data.train.batches(10)) + list(data.holdout.batches(10))


def test_rows_of_parquet_files_need_room_on_the_disk(tmp_path, monkeypatch):
    usage = records.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(records.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(NoResources, match="GiB needed to stream from parquet files"):
        load_data(changed(written(tmp_path, "parquet"), memory="stream"), tmp_path / "cache")


@pytest.mark.parametrize("part", ["images", "offsets"])
def test_a_pack_that_was_broken_off_is_made_again(tmp_path, part):
    spec, cache = changed(written(tmp_path, "parquet"), memory="stream"), tmp_path / "cache"
    pixels = next(load_data(spec, cache).train.batches(50))[0]
    (packed,) = cache.glob("*.pack")
    broken = packed if part == "images" else packed.with_suffix(".npy")
    broken.write_bytes(broken.read_bytes()[:-1])
    assert torch.equal(next(load_data(spec, cache).train.batches(50))[0], pixels)
    broken.unlink()
    assert torch.equal(next(load_data(spec, cache).train.batches(50))[0], pixels)


# -- Real sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in ("flowers64", "flowers128", "cifar10")])  # fmt: skip
def test_a_real_set_streams_as_it_lies_in_memory(tmp_path, shared_data, name):
    if not (shared_data / name).is_dir():
        pytest.skip(f"no {name} in {shared_data}")
    from dsd_lab.specs.trial import Data

    spec = Data(source="parquet", path=str(shared_data / name), size=32, crop="centre")
    here, there = (load_data(changed(spec, memory=m), tmp_path) for m in ("stream", "resident"))
    assert here.fingerprint == there.fingerprint and here.facts == there.facts | {"resident": False}
    indices = batch_indices(0, 3, 256, len(here.train))
    assert torch.equal(here.train.bytes_at(indices), there.train.bytes_at(indices))


@pytest.mark.integration
def test_a_process_ends_with_batches_under_way(tmp_path):
    written(tmp_path, "folder")
    code = (
        "import torch\n"
        "from dsd_lab.core.data import load_data\n"
        "from dsd_lab.specs.trial import Data\n"
        f"data = load_data(Data(source='folder', path={str(tmp_path / 'set')!r}, memory='stream', workers=2))\n"
        "data.train.prefetch(torch.arange(30).repeat(50).split(500))\n"
        "print(len(data.train._ahead))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
