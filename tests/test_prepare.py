"""Prepared sets: the images of the source bit for bit, taken up after a kill, checked, and refused where they are others."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from picturing import changed, encoded, pictures, write_folder, write_parquet, write_tar, write_zip
from PIL import Image
from sweeping import run, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.data import Images, StreamedImages, load_data, source_of
from dsd_lab.core.data.levels import count_levels
from dsd_lab.core.data.progress import listening
from dsd_lab.core.preparing import image_files, journal, source, write
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT, OK, BadInput, NoResources
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data
from dsd_lab.specs.yaml_document import parse_scalar

CPU = torch.device("cpu")
BLOCK = 8 * 3 * 8 * 8
"""Bytes of eight images of these tests."""


def written(folder, kind):
    """A set of 40 images in four classes of each kind that is read."""
    arrays, labels = pictures(40), [i % 4 for i in range(40)]
    if kind == "folder":  # grey ones before the first in colour, and two that are damaged
        mixed = [*pictures(5, False), b"no image", *pictures(13, True), b"", *pictures(20, seed=3)]
        return changed(write_folder(folder / "set", mixed, labels), damaged="skip", size=7, crop="centre")
    if kind == "parquet":
        write_parquet(folder / "set" / "train.parquet", arrays[:30], labels[:30])
        return write_parquet(folder / "set" / "test.parquet", arrays[30:], labels[30:])
    if kind == "zip":
        names = {f"{i % 4:05}/img{i:08}.png": encoded(array) for i, array in enumerate(arrays)}
        listed = [[name, i % 4] for i, name in enumerate(names)]
        return write_zip(folder / "set.zip", names | {"dataset.json": json.dumps({"labels": listed})})
    if kind == "tar":
        samples = [{f"{i:03}.png": encoded(arrays[i]), f"{i:03}.cls": str(i % 4).encode()} for i in range(40)]
        for split, part in (("train-000", samples[:20]), ("train-001", samples[20:30]), ("val-000", samples[30:])):
            write_tar(folder / "set" / f"{split}.tar", {k: v for sample in part for k, v in sample.items()})
        return Data(source="tar", path=str(folder / "set"))
    return Data(size=6)  # scikit-learn's digits


def prepared(spec, out, **fields):
    return changed(spec, source="prepared", path=str(out), **fields)


@pytest.mark.parametrize("kind", ["folder", "parquet", "zip", "tar", "digits"])
def test_a_prepared_set_is_its_source_bit_for_bit(tmp_path, kind, monkeypatch):
    spec, out = written(tmp_path, kind), tmp_path / "out"
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    there, made = load_data(changed(spec, memory="resident")), write.prepare(spec, "set", out, None, 2)
    assert made.fingerprint == there.fingerprint
    for memory, form in (("stream", StreamedImages), ("auto", Images)):
        here = load_data(prepared(spec, out, memory=memory))
        assert isinstance(here.train, form) and here.fingerprint == there.fingerprint
        assert here.facts == there.facts | {"resident": memory == "auto"} and here.damaged == there.damaged
        for part in ("train", "holdout"):
            found = torch.cat([pixels for pixels, _ in getattr(here, part).batches(3)])
            assert torch.equal(found, getattr(there, part).pixels)
            assert torch.equal(getattr(here, part).labels, getattr(there, part).labels)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_trained_on_as_they_are_and_hold_what_a_folder_of_them_holds(tmp_path, kind):
    spec = written(tmp_path, kind)
    here, there = (load_data(changed(spec, memory=memory)) for memory in ("stream", "resident"))
    assert here.fingerprint == there.fingerprint and here.facts == there.facts | {"resident": False}
    if kind == "zip":
        assert source_of(tmp_path / "set.zip") == "zip"
        with zipfile.ZipFile(tmp_path / "set.zip") as archive:
            archive.extractall(tmp_path / "unpacked")
        unpacked = load_data(changed(spec, source="folder", path=str(tmp_path / "unpacked")))
        assert (unpacked.fingerprint, unpacked.facts) == (there.fingerprint, there.facts)
        raws = {
            f"all/{s}/{'ab'[i % 2]}/{i}.png": encoded(a) for s in ("train", "val") for i, a in enumerate(pictures(6))
        }
        wrapped = load_data(write_zip(tmp_path / "wrapped.zip", raws | {"all/.DS_Store": b"x"}))
        assert (wrapped.class_names, wrapped.holdout_from, len(wrapped.train)) == (("a", "b"), "val/", 6)
    else:
        assert source_of(tmp_path / "set") == "tar" and (len(there.train), len(there.holdout)) == (30, 10)
        write_tar(tmp_path / "plain" / "shard-0.tar", {f"{i}.png": encoded(a) for i, a in enumerate(pictures(5))})
        assert load_data(Data(source="tar", path=str(tmp_path / "plain"))).classes == 1


@pytest.mark.parametrize(
    ("kind", "spoil", "complaint"),
    [
        ("zip", lambda p: p.write_bytes(b"no zip"), "not a zip file"),
        ("zip", lambda p: write_zip(p, {"a.txt": b""}), "holds no images"),
        ("zip", lambda p: write_zip(p, {"a/1.png": b"", "2.png": b""}), "beside class folders"),
        ("zip", lambda p: write_zip(p, {"1.png": b"", "dataset.json": b"[]"}), "as StyleGAN and EDM"),
        ("zip", lambda p: p.write_bytes(p.read_bytes().replace(b"IDAT", b"IDOT")), "damaged image"),
        ("tar", lambda p: (p / "train-000.tar").write_bytes(b"no tar" * 200), "not an uncompressed tar file"),
        ("tar", lambda p: write_tar(p / "train-000.tar", {"1.png": b"x", "1.cls": b"-1"}), "the label '-1' is no class"),
        ("tar", lambda p: write_tar(p / "train-000.tar", {"1.png": b"x"}), r"1\.png has no \.cls file"),
        ("tar", lambda p: write_tar(p / "train-000.tar", {"1.png": b"x", "1.jpg": b"x"}), "two images are called 1"),
    ],
)  # fmt: skip
def test_archives_that_are_not_understood_are_refused_in_a_line(tmp_path, kind, spoil, complaint):
    spec = written(tmp_path, kind)
    spoil(tmp_path / "set.zip" if kind == "zip" else tmp_path / "set")
    with pytest.raises(BadInput, match=complaint) as caught:
        load_data(spec)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zip", "tar", "array", "jpeg"])
def test_any_damage_is_told_in_a_line_or_does_not_matter(tmp_path, kind):
    """Bytes are changed, cut off and repeated at random in every file of a set."""
    source, said = np.random.default_rng(0), []
    spec = changed(written(tmp_path, "zip" if kind == "zip" else "tar"), memory="stream", workers=0)
    if kind in ("array", "jpeg"):
        write.prepare(spec, "set", tmp_path / "out", 90 if kind == "jpeg" else None, 0)
        spec = prepared(spec, tmp_path / "out")
    place = Path(spec.path)
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.stat().st_size)
    for path in files:
        whole = path.read_bytes()
        for _ in range(40 // len(files)):
            spoiled, at = bytearray(whole), int(source.integers(0, len(whole)))
            how = source.integers(0, 3)
            spoiled[at : at + 4] = (
                bytes(source.integers(0, 256, 4).astype(np.uint8)) if how == 0 else b"" if how == 1 else whole[:8]
            )
            path.write_bytes(spoiled)
            try:
                data = load_data(spec)
                _ = list(data.train.batches(16)), data.facts
            except BadInput as error:
                said.append(str(error))
        path.write_bytes(whole)
    load_data(spec)
    assert len(said) > 5 and all(line.isprintable() and len(line) < 2000 for line in said)


def test_a_trial_on_a_prepared_set_is_the_trial_on_its_source(tmp_path, tiny_trial, capsys):
    write_folder(tmp_path / "set", pictures(40), [i % 4 for i in range(40)])
    spec = write_spec(tmp_path, base={"data": {"source": "folder", "path": "set", "size": 8}})
    assert main(["prepare", str(spec), "--out", str(tmp_path / "fast")]) == OK
    line = re.search(r"next: .* sweep (.*)", capsys.readouterr().out)
    given, *words = shlex.split(line[1])
    moved = load_sweep(Path(given), None, words[1::2])
    assert [t.id for t in moved.trials] == [t.id for t in load_sweep(spec).trials]
    data, weights = moved.trials[0].fields.data, []
    assert data.source == "prepared" and data.name == "set"
    for fields in (load_sweep(spec).trials[0].fields.data, data, changed(data, memory="stream", workers=2)):
        trainer = Trainer(tiny_trial(), 0, load_data(fields), CPU)
        list(trainer.run())
        weights.append(trainer.network.state_dict())
    assert all(torch.equal(other[k], v) for other in weights[1:] for k, v in weights[0].items())


def begun(spec, out, jpeg=None):
    """A preparation that is interrupted after three blocks."""

    def killed(what, done, of):
        if what == "images written" and done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(killed):
        write.prepare(spec, "set", out, jpeg, 2)


@pytest.mark.parametrize("jpeg", [None, 90])
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_set_whose_preparation_was_killed_is_taken_up_after_the_last_block(tmp_path, kind, jpeg, monkeypatch):
    spec = written(tmp_path, kind)
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    whole = write.prepare(spec, "set", tmp_path / "whole", jpeg, 2)
    out, decoded = tmp_path / "out", []
    begun(spec, out, jpeg)
    with (out / "progress.jsonl").open("a") as journal:
        journal.write('{"records": 39, "ro')  # torn
    (out / ("jpegs.pack" if jpeg else "images.npy")).open("ab").write(b"half an image")
    with pytest.raises(BadInput, match="is not finished; run the same `dsd-lab prepare` again"):
        load_data(prepared(spec, out))
    monkeypatch.setattr(source, "attempt", lambda *a, inner=source.attempt: decoded.append(1) or inner(*a))
    assert write.prepare(spec, "set", out, jpeg, 2) == whole and len(decoded) < 20
    for name in ("images.npy", "jpegs.pack", "jpegs.npy", "labels.npy", "held_out.npy", "prepared.json"):
        assert (out / name).exists() == (tmp_path / "whole" / name).exists()
        assert not (out / name).exists() or (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_preparation_that_is_really_killed_goes_on(tmp_path):
    """SIGKILL, by the process itself, in the middle of a block."""
    spec = written(tmp_path, "parquet")
    program = """
import os, pathlib, signal, sys
from dsd_lab.core.preparing import write, source
from dsd_lab.specs.trial import Data
write._BLOCK_BYTES, seen, inner = int(sys.argv[1]), [], source.attempt
def attempt(*given):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*given)
source.attempt = attempt
spec = Data.model_validate_json(sys.argv[3])
print(write.prepare(spec, "set", pathlib.Path(sys.argv[4]), None, 2).fingerprint)
"""
    codes = []
    for most in (20, 20, 1000):
        given = [str(BLOCK), str(most), spec.model_dump_json(), str(tmp_path / "out")]
        done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True)
        codes.append(done.returncode)
    assert codes == [-9, -9, 0], done.stderr
    assert done.stdout.strip() == load_data(spec).fingerprint


def test_a_preparation_goes_on_with_its_own_files_settings_and_pillow_only(tmp_path, monkeypatch):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    begun(spec, out)
    kept = (out / "progress.jsonl").read_bytes()
    with pytest.raises(BadInput, match="was begun from other files or with other settings"):
        write.prepare(changed(spec, size=4), "set", out, None, 1)
    monkeypatch.setattr(journal, "pillow", "0.1")
    with pytest.raises(BadInput, match=r"was begun with another Pillow than 0\.1; remove it"):
        write.prepare(spec, "set", out, None, 1)
    assert (out / "progress.jsonl").read_bytes() == kept and len(kept.splitlines()) > 3


@pytest.mark.parametrize("file", ["jpegs.pack", "jpegs.sizes"])
@pytest.mark.parametrize("spoil", ["cut", "zeros", "a folder"])
def test_what_a_killed_preparation_wrote_and_the_disk_has_lost_is_refused(tmp_path, file, spoil, monkeypatch):
    """A sizes file that is cut short must not be filled up with zeros."""
    spec, path = written(tmp_path, "parquet"), tmp_path / "out" / file
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    begun(spec, path.parent, 90)
    whole = path.read_bytes()
    if spoil == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(whole[:100] + (bytes(len(whole) - 100) if spoil == "zeros" else b""))
    said = {"a folder": f"{file}: Is a directory", "zeros": "images 0 to 7 are not what was written"}
    if spoil == "cut" or file == "jpegs.sizes":
        said["zeros"] = said["cut"] = f"{file}: is not what was written; remove"
    with pytest.raises(BadInput, match=said[spoil]) as e:
        write.prepare(spec, "set", path.parent, 90, 1)
    assert str(e.value).isprintable() and not (path.parent / "prepared.json").exists()


@pytest.mark.parametrize("line", ['{"records": "x", "rows": 8, "shape": [3, 8, 8], "damaged": []}', "[]", "[" * 9999])
def test_a_journal_that_is_damaged_is_followed_as_far_as_it_is_sound(tmp_path, line, monkeypatch):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    begun(spec, out)
    lines = (out / "progress.jsonl").read_text().splitlines()
    for place in (0, 2):
        (out / "progress.jsonl").write_text("\n".join([*lines[:place], line, *lines[place + 1 :]]))
        assert len(journal.resumed(out, json.loads(lines[0])["key"]).blocks) == max(0, place - 1)
    assert write.prepare(spec, "set", out, None, 1).fingerprint == load_data(spec).fingerprint


def spoilt(path, how):
    """Damage a file of a complete set."""
    raw = bytearray(path.read_bytes())
    if how in ("missing", "a folder"):
        path.unlink()
    if how == "a folder":
        path.mkdir()
    if how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    if how == "its head":
        raw[8] -= 1  # of an array, the length of its header: all images move by a byte
        path.write_bytes(raw)
    if how == "its end":
        raw[-1] ^= 1
        path.write_bytes(raw)


@pytest.mark.parametrize("how", ["missing", "a folder", "cut", "its head", "its end"])
@pytest.mark.parametrize(
    ("jpeg", "file"),
    [
        *((None, name) for name in ("images.npy", "labels.npy", "held_out.npy", "prepared.json")),
        *((90, name) for name in ("jpegs.pack", "jpegs.npy")),
    ],
)
def test_a_complete_set_that_is_damaged_is_told_in_a_line_where_it_is_checked_and_read(tmp_path, jpeg, file, how):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    whole = write.prepare(spec, "set", out, jpeg, 1)
    spoilt(out / file, how)
    if (file, how) == ("prepared.json", "missing"):
        assert write.prepare(spec, "set", out, jpeg, 1) == whole
        return
    calls = [lambda: write.prepare(spec, "set", out, jpeg, 1), lambda: load_data(prepared(spec, out))]
    if (file, how) == ("jpegs.pack", "its head"):  # a byte that decoders pass over: the pixels are the same
        assert calls.pop()().fingerprint == whole.fingerprint
    for call in calls:
        with pytest.raises(BadInput) as caught:
            call()
        assert str(caught.value).isprintable() and str(out) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("jpeg", [None, 90])
def test_images_that_are_read_into_memory_have_the_fingerprint_that_is_named(tmp_path, jpeg):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    write.prepare(spec, "set", out, jpeg, 1)
    content = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    with pytest.raises(BadInput, match=r"another fingerprint than prepared\.json says; run the same `dsd-lab prepare`"):
        load_data(prepared(spec, out))
    assert load_data(prepared(spec, out, memory="stream")).fingerprint == "0" * 64  # as docs/own-data.md says
    with pytest.raises(BadInput, match="is not what was written"):
        write.prepare(spec, "set", out, jpeg, 1)


@pytest.mark.parametrize("jpeg", [None, 90])
def test_with_another_pillow_the_same_command_takes_the_fingerprint_of_jpegs_anew(tmp_path, jpeg, monkeypatch):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    monkeypatch.setattr(write, "pillow", "0.1")
    first = write.prepare(spec, "set", out, jpeg, 1)
    monkeypatch.undo()
    if jpeg:
        with pytest.raises(BadInput, match=r"taken with Pillow 0\.1, and here is .*; run the same `dsd-lab prepare`"):
            load_data(prepared(spec, out))
    again = write.prepare(spec, "set", out, jpeg, 1)
    assert again == first.model_copy(update={"pillow": Image.__version__ if jpeg else "0.1"})
    assert load_data(prepared(spec, out)).fingerprint == first.fingerprint
    if jpeg:  # another Pillow is no excuse for damage
        monkeypatch.setattr(write, "pillow", "0.1")
        spoilt(out / "jpegs.pack", "its end")
        with pytest.raises(BadInput, match="images 0 to 39 are not what was written"):
            write.prepare(spec, "set", out, jpeg, 1)


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_a_source_that_was_moved_is_the_same_source(tmp_path, kind):
    spec, out = written(tmp_path, kind), tmp_path / "out"
    first = write.prepare(spec, "set", out, None, 1)
    place = tmp_path / "elsewhere" / Path(spec.path).name
    place.parent.mkdir()
    Path(spec.path).rename(place)
    assert write.prepare(changed(spec, path=str(place)), "set", out, None, 1) == first


def test_what_was_damaged_on_the_disk_is_found_by_the_same_command(tmp_path, monkeypatch):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    monkeypatch.setattr(write, "_BLOCK_BYTES", BLOCK)
    first = write.prepare(spec, "set", out, None, 1)
    assert write.prepare(spec, "set", out, None, 1) == first
    content = bytearray((out / "images.npy").read_bytes())
    content[-1] ^= 1
    (out / "images.npy").write_bytes(content)
    with pytest.raises(BadInput, match="images 32 to 39 are not what was written"):
        write.prepare(spec, "set", out, None, 1)
    labels = np.load(out / "labels.npy")
    np.save(out / "labels.npy", labels[:-1])
    with pytest.raises(
        BadInput, match=r"labels\.npy: damaged: holds \[39\] int64, and prepared.json says \[40\] int64"
    ):
        load_data(prepared(spec, out))
    labels[0] += 1
    np.save(out / "labels.npy", labels)
    with pytest.raises(BadInput, match=r"labels\.npy or held_out\.npy is not what was written"):
        load_data(prepared(spec, out))
    (out / "prepared.json").write_text("{}")
    with pytest.raises(BadInput, match=r"prepared.json: damaged: form: Field required"):
        load_data(prepared(spec, out))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"size": 4}, r"data\.size: 4, and .* was prepared with 7; write data\.size: 7, or prepare it again"),
        ({"crop": "none"}, r"data\.crop: none"),
        ({"holdout": 0.5}, r"data\.holdout: 0\.5, and .* prepared with 0\.22"),
        ({"damaged": "refuse"}, "prepared without 2 damaged images; write data.damaged: skip"),
    ],
)
def test_a_spec_that_means_other_images_is_refused(tmp_path, fields, complaint):
    spec, out = written(tmp_path, "folder"), tmp_path / "out"
    write.prepare(spec, "set", out, None, 2)
    with pytest.raises(BadInput, match=complaint):
        load_data(prepared(spec, out, **fields))


def test_a_folder_that_holds_something_else_is_not_written_to(tmp_path, monkeypatch):
    spec, out = written(tmp_path, "parquet"), tmp_path / "out"
    write.prepare(spec, "set", out, None, 1)
    for other in (changed(spec, size=4), changed(spec, label_column=None)):
        with pytest.raises(BadInput, match="was begun from other files or with other settings"):
            write.prepare(other, "set", out, None, 1)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "photo.png").touch()
    with pytest.raises(BadInput, match=r"holds photo\.png; name a new or empty folder"):
        write.prepare(spec, "set", tmp_path / "own", None, 1)
    usage = write.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(NoResources, match="needed; --jpeg takes about a sixth"):
        write.prepare(spec, "set", tmp_path / "full", None, 1)


def test_the_jpeg_form_is_a_set_of_its_own_that_is_always_the_same(tmp_path, capsys):
    smooth = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None], (32, 32))
    arrays = [np.stack([np.roll(smooth, i, 1), smooth, smooth.T], -1) for i in range(39)] + [smooth]
    write_folder(tmp_path / "set", arrays, [i % 2 for i in range(40)])
    spec = write_spec(tmp_path, base={"data": {"source": "folder", "path": "set"}})
    assert main(["prepare", str(spec), "--out", str(tmp_path / "out"), "--jpeg", "97"]) == OK
    told = capsys.readouterr().out
    assert "JPEG is lossy" in told and "base.data.revision=1-jpeg97" in told
    there = load_data(Data(source="folder", path=str(tmp_path / "set")))
    fields = Data(source="prepared", path=str(tmp_path / "out"))
    here, streamed = load_data(fields), load_data(changed(fields, memory="stream"))
    assert here.fingerprint == streamed.fingerprint != there.fingerprint
    assert here.facts | {"resident": False} == streamed.facts
    error = (here.train.pixels.int() - there.train.pixels.int()).abs()
    assert 0 < error.max() < 12
    assert torch.equal(torch.cat([pixels for pixels, _ in streamed.train.batches(7)]), here.train.pixels)


def test_the_verb_shows_what_it_made_and_refuses_what_it_cannot_make(tmp_path, capsys):
    write_folder(tmp_path / "my set", pictures(12), [i % 2 for i in range(12)])
    assert run("prepare", tmp_path / "my set", "--size", "6", "--out", tmp_path / "out")[0] == BAD_INPUT
    assert "the folder must be called 'my set'" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "my set"), "--size", "6", "--out", str(tmp_path / "fast" / "my set")]) == OK
    assert "size: 6, crop: centre" in capsys.readouterr().out
    code, answer = run("prepare", tmp_path / "my set", "--size", "6", "--out", tmp_path / "fast" / "my set")
    assert code == OK and answer["count"] == 12 and answer["shape"] == [3, 6, 6]
    capsys.readouterr()
    assert run("prepare", tmp_path / "fast" / "my set", "--out", tmp_path / "again")[0] == BAD_INPUT
    assert "is a prepared set already" in capsys.readouterr().err
    assert (
        run("data", tmp_path / "fast" / "my set", "--home", tmp_path / "home")[1]["fingerprint"]
        == answer["fingerprint"]
    )


def test_the_line_to_train_on_a_prepared_set_is_yaml_for_any_name_and_for_null(tmp_path, capsys):
    write_parquet(tmp_path / "1e3" / "train.parquet", pictures(12), [0] * 12)
    out = tmp_path / "fast, yes: #1" / "1e3"
    words = ["prepare", str(tmp_path / "1e3"), "--out", str(out), "--size", "6", "--set", "data.label_column=null"]
    assert main(words) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train on it: ")]
    told = parse_scalar(line.removeprefix("train on it: "))["data"]
    assert (told["name"], told["label_column"], told["path"]) == ("1e3", None, str(out))
    assert load_data(Data.model_validate(told)).facts["train"] > 0


def test_decoding_uses_as_many_threads_as_asked_for_while_writing_and_while_checking(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", pictures(24), [i % 2 for i in range(24)])
    spec = Data(source="folder", path=str(tmp_path / "set"))
    active, most = Counter(), Counter()

    def counted(name, function):
        def call(*given):
            with counting:
                active[name] += 1
                most[name] = max(most[name], active[name])
            time.sleep(0.01)  # other threads start meanwhile
            try:
                return function(*given)
            finally:
                with counting:
                    active[name] -= 1

        return call

    counting = threading.Lock()
    for module, name in ((image_files, "decode_jpeg"), (source, "attempt")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    for workers, bounds in ((1, {1}), (3, {2, 3})):
        most.clear()
        write.prepare(spec, "set", tmp_path / f"by {workers}", 95, workers)
        assert most["decode_jpeg"] in bounds and most["attempt"] in bounds


def test_two_pixels_at_once_are_counted_as_one_by_one():
    pixels = pictures(3, size=5).transpose(0, 3, 1, 2)
    alone = [np.bincount(pixels[:, channel].ravel(), minlength=256) for channel in range(3)]
    assert count_levels(pixels).tolist() == np.stack(alone).tolist()
