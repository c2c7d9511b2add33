"""Image folders: layout, names, links, damage, sizes; and what holds for generated sets that nobody has seen."""

import os

import numpy as np
import pytest
import torch
from picturing import changed, deep, encoded, pictures, write_folder, write_parquet
from PIL import Image

from dsd_lab.core.data import Images, StreamedImages, load_data
from dsd_lab.core.data.decoding import framed
from dsd_lab.errors import BadInput
from dsd_lab.specs.trial import Data

NAMES = ["b 'quoted'", "c\nbroken", "d,;#%", "e.jpg", "Äpfel und Birnen", "日本"]


def as_tensor(arrays):
    arrays = np.asarray(arrays)
    return torch.from_numpy(arrays.transpose(0, 3, 1, 2) if arrays.ndim == 4 else arrays[:, None])


# -- Layout ----------------------------------------------------------------------------------------


def test_sorted_sub_folders_are_the_classes_and_every_image_comes_back(tmp_path):
    arrays, labels = pictures(12), [i % 6 for i in range(12)]
    write_folder(tmp_path, arrays, labels, NAMES, "train")
    data = load_data(write_folder(tmp_path, arrays[:6], range(6), NAMES, "val"))
    order = sorted(range(12), key=lambda i: (labels[i], i))
    assert torch.equal(data.train.pixels, as_tensor(arrays[order])) and data.train.labels.tolist() == sorted(labels)
    assert torch.equal(data.holdout.pixels, as_tensor(arrays[:6])) and data.holdout.labels.tolist() == list(range(6))
    assert data.classes == 6 and [name[0] for name in data.class_names] == ["b", "c", "d", "e", "Ä", "日"]
    assert all(name.isprintable() for name in data.class_names)


@pytest.mark.parametrize(("there", "taken"), [(["test", "validation", "val"], "val"), (["test", "validation"], "validation"), (["test"], "test")])  # fmt: skip
def test_the_first_of_val_validation_and_test_is_held_out(tmp_path, there, taken):
    spec = write_folder(tmp_path, pictures(4), [0, 0, 1, 1], split="train")
    for seed, split in enumerate(there, 1):
        write_folder(tmp_path, pictures(2, seed=seed), [0, 1], split=split)
    seed = there.index(taken) + 1
    assert torch.equal(load_data(spec).holdout.pixels, as_tensor(pictures(2, seed=seed)))


def test_without_a_split_of_its_own_a_fraction_of_every_class_is_held_out(tmp_path):
    spec = changed(write_folder(tmp_path, pictures(40), [i % 4 for i in range(40)]), holdout=0.2)
    data = load_data(spec)
    assert data.facts["holdout_by_class"] == [2] * 4 and data.facts["train_by_class"] == [8] * 4
    assert torch.equal(load_data(spec).holdout.pixels, data.holdout.pixels)


def test_train_may_also_be_the_name_of_a_class(tmp_path):
    data = load_data(write_folder(tmp_path, pictures(8), [0, 1] * 4, ["car", "train"]))
    assert data.class_names == ("car", "train") and len(data.train) == 6


def test_images_lie_at_any_depth_and_hidden_files_are_passed_over(tmp_path):
    spec = write_folder(tmp_path, pictures(4), [0, 0, 1, 1])
    (tmp_path / "class000" / "more" / "still more").mkdir(parents=True)
    (tmp_path / "class000" / "more" / "still more" / "Ünï\ncode.png").write_bytes(encoded(pictures(1)[0]))
    (tmp_path / "class000" / ".DS_Store").write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("files beside the classes are nobody's")
    data = load_data(spec)
    assert (len(data.train) + len(data.holdout), data.classes) == (5, 2)


def test_a_file_name_that_is_no_text_is_read_and_named(tmp_path):
    spec = write_folder(tmp_path, pictures(4), [0, 0, 1, 1])
    odd = os.path.join(os.fsencode(tmp_path / "class000"), b"\xff\xfe.png")
    with open(odd, "wb") as file:
        file.write(encoded(pictures(1)[0]))
    assert len(load_data(spec).train) == 3
    with open(odd, "wb") as file:
        file.write(b"no image")
    with pytest.raises(BadInput, match=r"udcff.*damaged image") as caught:
        load_data(spec)
    assert str(caught.value).isprintable() and str(caught.value).encode()


LAYOUTS = {
    "an empty class": (lambda root: (root / "class2").mkdir(), r"class2: a class without images"),
    "a class of hidden files": (lambda root: [(root / "class2").mkdir(), (root / "class2" / ".x").touch()], "class2: a class without"),
    "held-out images alone": (lambda root: write_folder(root, pictures(1), [0], split="val"), r"has val/ but no train/"),
    "a pipe": (lambda root: os.mkfifo(root / "class000" / "pipe"), "pipe: neither a file nor a folder"),
    "a link outside": (lambda root: (root / "class000" / "out.png").symlink_to("/etc/hostname"), r"out\.png: a link that leads outside"),
    "a folder outside": (lambda root: (root / "class000" / "out").symlink_to("/etc"), r"out: a link that leads outside"),
    "a class outside": (lambda root: (root / "class9").symlink_to(root.parent / "elsewhere"), r"class9: a link that leads outside"),
    "a circle": (lambda root: (root / "class000" / "round").symlink_to(root), "a link to a folder that contains it"),
    "a link to a pipe": (lambda root: [os.mkfifo(root / "pipe"), (root / "class000" / "to").symlink_to("../pipe")], "to: neither a file"),
    "a link to itself": (lambda root: (root / "class000" / "me.png").symlink_to("me.png"), r"me\.png: damaged image: Too many levels"),
    "a link into nothing": (lambda root: (root / "class000" / "gone.png").symlink_to("nothing.png"), r"gone\.png: damaged image: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_cannot_be_read_is_refused_in_one_line(tmp_path, layout):
    (tmp_path / "elsewhere").mkdir()
    spec = write_folder(tmp_path / "set", pictures(4), [0, 0, 1, 1])
    change, complaint = LAYOUTS[layout]
    change(tmp_path / "set")
    with pytest.raises(BadInput, match=complaint) as caught:
        load_data(spec)
    assert str(caught.value).isprintable()


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path):
    write_folder(tmp_path / "set", pictures(4), [0, 0, 1, 1])
    (tmp_path / "set" / "class000" / "again.png").symlink_to("../class001/00002.png")
    (tmp_path / "link").symlink_to("set")
    data = load_data(Data(source="folder", path=str(tmp_path / "link")))
    assert len(data.train) + len(data.holdout) == 5


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.touch()])
def test_a_folder_without_classes_is_named(tmp_path, make):
    make(tmp_path / "set")
    with pytest.raises(BadInput, match=r"set: holds no sub-folders"):
        load_data(Data(source="folder", path=str(tmp_path / "set")))


def test_a_held_out_class_that_is_not_trained_is_named(tmp_path):
    write_folder(tmp_path, pictures(4), [0, 0, 1, 1], split="train")
    with pytest.raises(BadInput, match=r"val/class007: no class of this name in .*train"):
        load_data(write_folder(tmp_path, pictures(2), [0, 7], split="val"))


# -- Damage ----------------------------------------------------------------------------------------

DAMAGE = {"cut": encoded(pictures(1)[0])[:70], "text": b"no image", "empty": b"", "16 bits": deep()}


@pytest.mark.parametrize("memory", ["resident", "stream"])
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_damaged_image_is_refused_by_name_or_skipped_and_counted(tmp_path, source, kind, memory):
    arrays, labels = list(pictures(12)), [0] * 6 + [1] * 6
    arrays[7] = DAMAGE[kind]
    if source == "folder":
        spec, name = write_folder(tmp_path, arrays, labels), "class001/00007.png"
    else:
        spec, name = write_parquet(tmp_path / "train.parquet", arrays, labels), "train.parquet: row 7"
    spec = changed(spec, memory=memory)
    with pytest.raises(BadInput, match=rf"{name}.*`data.damaged: skip`"):
        load_data(spec)
    data = load_data(changed(spec, damaged="skip"))
    assert len(data.train) + len(data.holdout) == 11
    assert data.facts["damaged"] == 1 and name in data.facts["damaged_named"][0]
    found = torch.cat([pixels for part in (data.train, data.holdout) for pixels, _ in part.batches(5)])
    kept = as_tensor(np.stack([a for i, a in enumerate(arrays) if i != 7]))
    assert sorted(map(bytes, found.flatten(1).numpy())) == sorted(map(bytes, kept.flatten(1).numpy()))


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_a_class_whose_images_are_all_damaged_is_named(tmp_path, memory):
    spec = write_folder(tmp_path, [*pictures(4), b"no", b"no"], [0, 0, 0, 0, 1, 1])
    with pytest.raises(BadInput, match="class class001: every training image is damaged"):
        load_data(changed(spec, damaged="skip", memory=memory))
    (tmp_path / "class000").rename(tmp_path.parent / f"{tmp_path.name}-away")
    with pytest.raises(BadInput, match="every image is damaged"):
        load_data(changed(spec, damaged="skip", memory=memory))


# -- Sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["resident", "stream"])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_images_of_different_sizes_need_a_size(tmp_path, source, memory):
    arrays, labels = [p for s in (8, 20, 33, 9) for p in pictures(2, size=s, seed=s)], [0, 1] * 4
    arrays[3] = pictures(1, size=40)[0][:, :25]  # 40 high, 25 wide
    write = write_folder if source == "folder" else lambda root, *more: write_parquet(root / "train.parquet", *more)
    spec = changed(write(tmp_path, arrays, labels), memory=memory)
    with pytest.raises(BadInput, match=r"pixels where others have \(8, 8, 3\).*`data.size`"):
        load_data(spec)
    with pytest.raises(BadInput, match="pixels where others have"):
        load_data(changed(spec, size=16))
    assert load_data(changed(spec, size=16, crop="centre")).train.shape == (3, 16, 16)


def adm(picture, size):
    """`center_crop_arr` of guided-diffusion's image_datasets.py, as DiT and SiT carry it."""
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.Resampling.BOX)
    scale = size / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.Resampling.BICUBIC)
    array = np.array(picture)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


@pytest.mark.parametrize(("height", "width", "size"), [(200, 131, 32), (64, 64, 32), (33, 90, 16), (20, 31, 64), (16, 16, 16)])  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resizing_and_cropping_are_adms(height, width, size, mode):
    picture = Image.fromarray(pictures(1, size=200)[0][:height, :width]).convert(mode)
    ours = framed(picture, Data(size=size, crop="centre"))
    assert np.array_equal(np.asarray(ours), adm(picture, size))


def test_a_size_alone_keeps_the_shape_of_the_picture_and_a_crop_alone_its_pixels():
    picture = Image.fromarray(pictures(1, size=60)[0][:, :40])
    assert framed(picture, Data(size=20)).size == (20, 30)
    assert np.array_equal(np.asarray(framed(picture, Data(crop="centre"))), np.asarray(picture)[10:50])
    assert framed(picture, Data()) is picture


def test_a_line_that_would_become_a_huge_picture_is_a_damaged_image(tmp_path):
    line = np.zeros((1, 60_000, 3), dtype=np.uint8)
    spec = write_folder(tmp_path, [*pictures(4), line], [0, 0, 1, 1, 1])
    with pytest.raises(BadInput, match=r"00004\.png: damaged image: 60000 x 1 pixels would become"):
        load_data(changed(spec, size=256, crop="centre"))


def test_the_digits_can_be_resized_too(digits):
    data = load_data(Data(size=16))
    assert data.train.shape == (1, 16, 16) and len(data.train) == len(digits.train)
    assert data.fingerprint != digits.fingerprint


# -- Sets that are named nowhere ----------------------------------------------------------------------


def grown(colour, classes, count):
    return pictures(count, colour, 64), [i % classes for i in range(count)]


@pytest.mark.parametrize(("colour", "classes"), [(False, 6), (True, 101), (True, 1), (False, 1)])
def test_any_number_of_classes_and_channels_is_read_from_folder_and_parquet_alike(tmp_path, colour, classes):
    arrays, labels = grown(colour, classes, 2 * classes + 4)
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    write_parquet(tmp_path / "parquet" / "train.parquet", arrays[order], [labels[i] for i in order])
    specs = [write_folder(tmp_path / "folder", arrays, labels), Data(source="parquet", path=str(tmp_path / "parquet"))]
    sets = [load_data(changed(spec, memory=memory)) for spec in specs for memory in ("resident", "stream")]
    assert {(d.channels, d.image_size, d.classes) for d in sets} == {(3 if colour else 1, 64, classes)}
    assert len({d.fingerprint for d in sets}) == 1
    assert [type(d.train) for d in sets] == [Images, StreamedImages] * 2
    for part in ("train", "holdout"):
        indices = torch.arange(len(getattr(sets[0], part))).flip(0)
        drawn = [getattr(d, part).at(indices, torch.device("cpu")) for d in sets]
        assert all(torch.equal(x, drawn[0][0]) and torch.equal(y, drawn[0][1]) for x, y in drawn)


def test_facts_are_the_ones_of_the_pixels(tmp_path):
    data = load_data(write_folder(tmp_path, pictures(30), [i % 3 for i in range(30)]))
    pixels = data.train.pixels.double()
    facts = data.facts
    assert facts["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert facts["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-5)
    assert (facts["min"], facts["max"]) == (int(pixels.min()), int(pixels.max()))
    assert load_data(changed(Data(source="folder", path=str(tmp_path)), memory="stream")).facts == facts | {
        "resident": False
    }


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_classes_of_parquet_labels_with_gaps_are_those_that_occur(tmp_path, memory):
    spec = write_parquet(tmp_path / "train.parquet", pictures(12), [3, 7, 10**12] * 4)
    write_parquet(tmp_path / "test.parquet", pictures(2, seed=1), [7, 3])
    data = load_data(changed(spec, memory=memory))
    assert data.classes == 3 and data.class_names == ("3", "7", "1000000000000")
    assert data.train.labels.tolist() == [0, 1, 2] * 4 and data.holdout.labels.tolist() == [1, 0]


def test_parquet_columns_may_have_other_names_and_class_names(tmp_path):
    metadata = {"huggingface": '{"info": {"features": {"fine": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'}
    spec = write_parquet(tmp_path / "train.parquet", pictures(8), [0, 1] * 4, ("img", "fine"), metadata)
    with pytest.raises(BadInput, match=r"no column 'image' \(it has img, fine\)"):
        load_data(spec)
    assert load_data(changed(spec, image_column="img", label_column="fine")).class_names == ("cat", "dog")


def test_one_image_alone_cannot_be_split(tmp_path):
    with pytest.raises(BadInput, match=r"data\.holdout: none of 1 images can be held out"):
        load_data(write_folder(tmp_path, pictures(1), [0]))
