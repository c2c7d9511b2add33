"""Layouts as downloads have them: each is read as its author meant, or refused in a line that says what to do."""

import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from picturing import changed, encoded, pictures, write_folder, write_parquet
from PIL import Image

from dsd_lab.core.data import load_data, source_of
from dsd_lab.core.data.dataset import held_out
from dsd_lab.core.data.layout import class_order, split_name
from dsd_lab.errors import BadInput
from dsd_lab.specs.trial import Data

CLASSES = ["cat", "dog"]


def folder(root, splits, classes=CLASSES):
    """Class folders with two images a class below each split."""
    for seed, split in enumerate(splits):
        write_folder(root, pictures(2 * len(classes), seed=seed), [*range(len(classes))] * 2, classes, split)
    return Data(source="folder", path=str(root))


def refused(spec, complaint):
    with pytest.raises(BadInput, match=complaint) as caught:
        load_data(spec)
    assert str(caught.value).isprintable()


# -- Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "prefix"),
    [("Training", "train", ""), ("seg_train", "train", "seg"), ("test_set", "test", ""), ("VALID", "valid", ""), ("t10k", "test", ""), ("train2017", "train", "")],
)  # fmt: skip
def test_names_of_splits_are_known_in_any_case_and_spelling(name, split, prefix):
    found = split_name(name)
    assert found is not None and (found.split, found.prefix) == (split, prefix)


@pytest.mark.parametrize("name", ["trainer", "train_full", "contest", "latest", "cat", "validated"])
def test_other_names_are_no_splits(name):
    assert split_name(name) is None


def test_numeric_names_are_in_numeric_order_and_others_in_that_of_their_letters():
    assert class_order(["10", "9", "1"]) == ["1", "9", "10"]
    assert class_order(["class10", "class9"]) == ["class10", "class9"]


def test_numeric_class_folders_are_numbered_by_value(tmp_path):
    assert load_data(folder(tmp_path, [""], [str(n) for n in range(12)])).class_names == tuple(map(str, range(12)))


# -- Folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "origin"),
    [(["train", "valid"], "valid/"), (["Train", "Test"], "Test/"), (["Training", "Testing"], "Testing/"), (["seg_train/seg_train", "seg_test/seg_test"], "seg_test/"), (["training_set", "test_set"], "test_set/"), (["train", "test", "validation"], "validation/")],
)  # fmt: skip
def test_splits_of_any_spelling_are_used(tmp_path, splits, origin):
    data = load_data(folder(tmp_path, splits))
    assert (len(data.train), len(data.holdout), data.class_names) == (4, 4, ("cat", "dog"))
    assert data.holdout_from == origin


def test_a_split_that_is_not_used_is_named(tmp_path):
    assert load_data(folder(tmp_path, ["train", "val", "test"])).notes == ("not used: test/",)


def test_an_unlabelled_test_is_named_and_a_fraction_held_out(tmp_path):
    spec = folder(tmp_path, ["train"])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.png").write_bytes(encoded(pictures(1)[0]))
    data = load_data(spec)
    assert data.notes == ("not used: test/ (1 images without class folders)",)
    assert data.holdout_from == "22 % of every class"


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pictures(1)[0]))


REFUSED = {
    "a flat val": (["train"], lambda r: put(r / "val" / "1.png"), r"val: holds 1 images but no class folders"),
    "a class beside train": (["train"], lambda r: put(r / "cat" / "1.png"), r"cat: holds images next to train/"),
    "two training splits": (["train", "Training"], lambda r: None, "are both training splits"),
    "one level too high": (["photos"], lambda r: None, r"look like the classes \(cat, dog\); point data\.path at .*photos"),
    "two levels too high": (["a/photos"], lambda r: None, r"point data\.path at .*a/photos$"),
    "splits one level down": (["set/train", "set/val", "more"], lambda r: None, r"set/ holds splits of its own; point data\.path at .*set$"),
    "an image beside classes": ([""], lambda r: put(r / "x.png"), r"x\.png: an image next to class folders"),
    "an image beside splits": (["train"], lambda r: put(r / "x.png"), r"x\.png: an image next to train/"),
    "text in a class": ([""], lambda r: (r / "cat" / "boxes.txt").write_text("1 2"), r"boxes\.txt: not an image but a \.txt file"),
    "tiny-imagenet's val": (["train"], lambda r: put(r / "val" / "images" / "1.png"), "val/images: no class of this name .* sort its images"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_passed_over_is_refused_with_what_to_do(tmp_path, case):
    splits, change, complaint = REFUSED[case]
    spec = folder(tmp_path, splits)
    change(tmp_path)
    refused(spec, complaint)


def test_leftovers_of_file_managers_are_passed_over_and_named_for_what_they_are(tmp_path):
    spec = folder(tmp_path, ["train", "val"])
    plain = load_data(spec)
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "._1.png").write_bytes(b"x")
    put(tmp_path / "train" / "cat" / "@eaDir" / "1.png")
    put(tmp_path / "train" / "@eaDir" / "1.png")
    data = load_data(spec)
    assert data.fingerprint == plain.fingerprint
    assert any("Thumbs.db (thumbnails of Windows)" in note for note in data.notes)
    assert any("._* (resource forks of macOS)" in note for note in data.notes)
    assert any("@eaDir (thumbnails of Synology)" in note for note in data.notes)


@pytest.mark.parametrize("splits", [[""], ["train", "val"]])
def test_images_without_class_folders_are_data_without_labels(tmp_path, splits):
    for split in splits:
        for i, array in enumerate(pictures(10)):
            put(tmp_path / split / f"{i}.png")
            (tmp_path / split / f"{i}.png").write_bytes(encoded(array))
    data = load_data(Data(source="folder", path=str(tmp_path)))
    assert (data.classes, data.class_names, data.conditional) == (1, (), False)
    assert len(data.train) == (10 if len(splits) == 2 else 8)


def test_stylegans_labels_are_the_classes_and_its_folders_are_not(tmp_path):
    for i, array in enumerate(pictures(12)):
        put(tmp_path / f"{i // 6:05}" / f"img{i:08}.png")
        (tmp_path / f"{i // 6:05}" / f"img{i:08}.png").write_bytes(encoded(array))
    names = [f"{i // 6:05}/img{i:08}.png" for i in range(12)]
    spec = Data(source="folder", path=str(tmp_path))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": [[name, 10 * (i % 3)] for i, name in enumerate(names)]})
    )
    data = load_data(spec)
    assert data.class_names == ("0", "10", "20") and data.facts["train_by_class"] == [3, 3, 3]
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert not load_data(spec).conditional
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[names[0], 1]]}))
    refused(spec, r"img00000001\.png: dataset\.json has no label for it")
    (tmp_path / "dataset.json").write_text('{"label": 1}')
    refused(spec, r"dataset\.json: not ")


# -- Classes -----------------------------------------------------------------------------------------


def test_a_class_of_one_image_stays_in_training_and_one_image_of_each_class_always_does():
    labels = torch.tensor([0] * 5 + [1] + [2] * 2)
    for fraction in (0.1, 0.5, 0.99):
        held = held_out(labels, fraction)
        assert labels[~held].unique().tolist() == [0, 1, 2] and not held[5] and bool(held[labels == 2].any())


def test_a_held_out_class_that_no_training_image_has_is_refused_in_parquet_as_in_a_folder(tmp_path):
    write_parquet(tmp_path / "train.parquet", pictures(4), [0, 1, 0, 1])
    refused(
        write_parquet(tmp_path / "test.parquet", pictures(2), [0, 7]), "class 7 has no training image but 1 held-out"
    )


# -- Parquet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held", "origin"),
    [
        ("train-00000-of-00001-1359597a978bc4fa", "valid-00000-of-00001-70d52db3c749a935", "valid*.parquet"),
        ("data/train-00000-of-00001", "data/val-00000-of-00001", "val*.parquet"),
        ("default/train/0000", "default/validation/0000", "validation/"),
        ("train/0000", "test/0000", "test/"),
        ("train", "test", "test*.parquet"),
    ],
)
def test_parquet_files_of_every_layout_are_found(tmp_path, train, held, origin):
    write_parquet(tmp_path / f"{train}.parquet", pictures(6), [0, 1] * 3)
    write_parquet(tmp_path / f"{held}.parquet", pictures(2, seed=1), [0, 1])
    data = load_data(Data(source="parquet", path=str(tmp_path)))
    assert (len(data.train), len(data.holdout), data.holdout_from) == (6, 2, origin)
    assert source_of(tmp_path) == "parquet"


def test_a_validation_split_goes_before_a_test_split_and_one_without_labels_is_not_used(tmp_path):
    write_parquet(tmp_path / "train.parquet", pictures(10), [0, 1] * 5)
    spec = write_parquet(tmp_path / "test.parquet", pictures(3), [-1] * 3)
    data = load_data(spec)
    assert data.notes == ("not used: test*.parquet (it has no labels)",) and len(data.holdout) == 2
    write_parquet(tmp_path / "validation.parquet", pictures(4), [0, 1] * 2)
    assert load_data(spec).holdout_from == "validation*.parquet"


def test_another_set_beside_train_is_named_and_not_mixed_in(tmp_path):
    write_parquet(tmp_path / "train_full-00000-of-00001.parquet", pictures(20), [0, 1] * 10)
    data = load_data(write_parquet(tmp_path / "train-00000-of-00001.parquet", pictures(10), [0, 1] * 5))
    assert len(data.train) + len(data.holdout) == 10 and data.notes == ("not used: train_full*.parquet",)


SHARDS = {
    "a gap": (["train-00000-of-00003", "train-00002-of-00003"], "2 of 3 shards are here; number 1 is missing"),
    "the end": (["train-00000-of-00002"], "1 of 2 shards are here; number 1 is missing"),
    "a count out of all measure": (["train-00000-of-99999999999"], "number 1, 2, 3, 4, 5 ... is missing"),
    "two sets": (["train-00000-of-00001", "train-00000-of-00002"], "shards of two different sets"),
    "a gap in numbers": (["train/0000", "train/0002"], "2 of 3 shards are here; number 1 is missing"),
    "two configurations": (["a/train/0000", "b/train/0000"], "holds several data sets; point data.path at one of them"),
    "a part": (["partial-train/0000"], "the first part of a training split"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_that_are_missing_or_do_not_belong_together_are_refused(tmp_path, case):
    names, complaint = SHARDS[case]
    for name in names:
        write_parquet(tmp_path / f"{name}.parquet", pictures(4), [0, 1, 0, 1])
    refused(Data(source="parquet", path=str(tmp_path)), complaint)


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_rows_that_name_files_are_read_from_the_files_beside_and_never_from_outside(tmp_path, memory):
    root = tmp_path / "set"
    arrays = pictures(6)
    for i, array in enumerate(arrays):
        put(root / "images" / f"{i}.png")
        (root / "images" / f"{i}.png").write_bytes(encoded(array))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def write(paths):
        images = pa.array([{"bytes": None, "path": path} for path in paths], kind)
        pa.parquet.write_table(pa.table({"image": images, "label": [0, 1] * 3}), root / "train.parquet")
        return Data(source="parquet", path=str(root), memory=memory)

    data = load_data(write([f"images/{i}.png" for i in range(6)]))
    found = torch.cat([pixels for part in (data.train, data.holdout) for pixels, _ in part.batches(6)])
    assert sorted(map(bytes, found.numpy())) == sorted(map(bytes, arrays.transpose(0, 3, 1, 2).copy()))
    put(tmp_path / "outside.png")
    refused(
        write(["../outside.png"] * 6),
        "row 0.*damaged image" + (": the row holds no bytes, and no file" if memory == "resident" else ""),
    )


def test_a_parquet_without_labels_is_read_where_the_spec_says_so(tmp_path):
    spec = write_parquet(tmp_path / "train.parquet", pictures(10), [0] * 10, columns=("image", "other"))
    refused(spec, r"`data\.label_column: null` where there are no labels")
    data = load_data(changed(spec, label_column=None))
    assert not data.conditional and len(data.train) == 8


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(Data(source="parquet", path=str(tmp_path)), "a pointer of Git LFS")


# -- idx ---------------------------------------------------------------------------------------------


def idx(array, kind=(8, ">u1")):
    array = np.asarray(array)
    head = bytes((0, 0, kind[0], array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(kind[1]).tobytes()


def write_idx(root, names, first=0):
    """Four files: labels count from `first`; returns the training pixels."""
    root.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 5))
    for name, count in zip(names, (6, 6, 4, 4), strict=True):
        labels = np.arange(count) % 3 + first
        raw = idx(pixels[:count]) if "images" in name else idx(labels)
        if "idx2" in name:
            raw = idx(np.stack([labels] * 8, 1), (0x0C, ">i4"))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return pixels


def names_of(form):
    return [form.format(split=s, what=w, n=n) for s in ("train", "t10k") for w, n in (("images", 3), ("labels", 1))]


IDX = {
    "Kaggle's dots": names_of("{split}-{what}.idx{n}-ubyte"),
    "Kaggle's folders": names_of("{split}-{what}-idx{n}-ubyte/{split}-{what}-idx{n}-ubyte"),
    "torchvision's raw": names_of("raw/{split}-{what}-idx{n}-ubyte"),
    "QMNIST's": ["qmnist-train-images-idx3-ubyte.gz", "qmnist-train-labels-idx2-int.gz", "qmnist-test-images-idx3-ubyte.gz", "qmnist-test-labels-idx2-int.gz"],
}  # fmt: skip


@pytest.mark.parametrize("names", IDX)
def test_idx_files_of_every_name_are_read(tmp_path, names):
    pixels = write_idx(tmp_path, IDX[names])
    data = load_data(Data(source="idx", path=str(tmp_path)))
    assert np.array_equal(data.train.pixels[:, 0].numpy(), pixels) and data.class_names == ("0", "1", "2")
    assert source_of(tmp_path) == "idx"


def test_emnist_is_upright_and_its_letters_are_numbered_from_0_and_named(tmp_path):
    names = [
        f"emnist-letters-{s}-{w}-idx{n}-ubyte.gz" for s in ("train", "test") for w, n in (("images", 3), ("labels", 1))
    ]
    pixels = write_idx(tmp_path, names, first=1)
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n" + "9" * 5000 + " 65\n")
    data = load_data(Data(source="idx", path=str(tmp_path)))
    assert np.array_equal(data.train.pixels[:, 0].numpy(), pixels.transpose(0, 2, 1))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.class_names == ("A", "B", "C")


def test_several_idx_sets_and_a_folder_too_high_say_what_to_point_at(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", names_of("{split}-{what}-idx{n}-ubyte"))
    refused(Data(source="idx", path=str(tmp_path)), r"the idx files are deeper; point data\.path at .*MNIST/raw")
    for kind in ("letters", "digits"):
        write_idx(tmp_path / "raw", [f"emnist-{kind}-{n}" for n in names_of("{split}-{what}-idx{n}-ubyte")])
    refused(Data(source="idx", path=str(tmp_path)), r"several data sets \(emnist-digits, emnist-letters\)")


# -- Pixels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("orientation", "turned"), [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (2, lambda a: a[:, ::-1])])  # fmt: skip
def test_images_are_turned_as_their_camera_noted(tmp_path, orientation, turned):
    array = pictures(1)[0]
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(buffer, "PNG", exif=exif)
    data = load_data(write_folder(tmp_path, [buffer.getvalue()] * 4, [0, 0, 1, 1]))
    assert np.array_equal(data.train.pixels[0].numpy(), turned(array).transpose(2, 0, 1))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("grey", 128), ("black", 0)])
def test_transparent_pixels_show_the_stated_background(tmp_path, background, level):
    array = np.full((8, 8, 4), 90, dtype=np.uint8)
    array[..., 3] = 255
    array[0, 0, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    spec = write_folder(tmp_path, [buffer.getvalue()] * 4, [0, 0, 1, 1])
    pixels = load_data(changed(spec, background=background)).train.pixels[0]
    assert pixels[:, 0, 0].tolist() == [level] * 3 and pixels[:, 0, 1].tolist() == [90] * 3
