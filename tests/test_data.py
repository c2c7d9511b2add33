"""Data sets: splits, fingerprints, both file formats made here and by others, and damage that is named."""

import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsd_lab.core.data import Images, load_data
from dsd_lab.errors import BadInput
from dsd_lab.specs.trial import Data

# -- The digits ------------------------------------------------------------------------------------


def test_the_digits_are_1797_grey_images_of_8_pixels_in_10_classes(digits):
    assert len(digits.train) + len(digits.holdout) == 1797
    assert (digits.channels, digits.image_size, digits.classes) == (1, 8, 10)
    assert digits.train.pixels.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert len(digits.train.pixels.unique()) == 17 and int(digits.train.pixels.max()) == 255


def test_the_digits_are_split_without_loss_and_without_overlap(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = sorted(
        (*np.round(i.flatten() * 255 / 16).astype(int), t) for i, t in zip(bunch.images, bunch.target, strict=True)
    )
    parts = [
        (*image.flatten().tolist(), label)
        for part in (digits.train, digits.holdout)
        for image, label in zip(part.pixels, part.labels.tolist(), strict=True)
    ]
    assert sorted(parts) == [tuple(map(int, row)) for row in expected]  # every image once, none twice


def test_every_class_of_the_digits_is_held_out_at_the_same_fraction(digits):
    for label in range(10):
        held, trained = (int((part.labels == label).sum()) for part in (digits.holdout, digits.train))
        assert held == round(0.22 * (held + trained))


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_held_out_fraction_is_the_specs_and_a_larger_one_holds_out_more(digits, fraction):
    data = load_data(Data(holdout=fraction))
    assert len(data.holdout) / 1797 == pytest.approx(fraction, abs=0.005)
    assert data.fingerprint != digits.fingerprint


def test_the_fingerprint_of_the_digits_is_the_same_everywhere(digits):
    assert load_data(Data()).fingerprint == digits.fingerprint
    # Trials record it and refuse to go on with another: a change of the split would strand every stored trial.
    assert digits.fingerprint == "4b1f8a944ade4b95c7d26bc91f3c553ed27c44552f5ef3551451f84224e1e057"


def test_images_come_as_floats_between_minus_one_and_one():
    images = Images(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1), torch.tensor([4, 5, 6]))
    x, y = images.at(torch.tensor([2, 0, 1, 2]), torch.device("cpu"))
    assert x.flatten().tolist() == pytest.approx([1, -1, -0.6, 1]) and y.tolist() == [6, 4, 5, 6]


def test_images_in_memory_are_copied_to_a_device_once_and_stay_where_they_were():
    images = Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([4, 5, 6]))
    there = torch.device("meta")  # every machine has it
    x, y = images.at(torch.tensor([2, 0]), there)
    assert (x.device, x.shape, x.dtype, y.device, y.shape) == (there, (2, 1, 2, 2), torch.float32, there, (2,))
    first = images._on(there)
    images.at(torch.tensor([1]), there)
    assert images._on(there) is first
    assert images.pixels.device.type == images.labels.device.type == "cpu"
    assert images.at(torch.tensor([0]), torch.device("cpu"))[1].tolist() == [4]


def test_images_that_would_fill_a_device_are_sent_there_batch_by_batch(monkeypatch):
    images = Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([4, 5, 6]))
    monkeypatch.setattr(Images, "_on", lambda self, device: None)
    x, y = images.at(torch.tensor([2, 0]), torch.device("meta"))
    assert (x.device.type, x.shape, x.dtype, y.device.type, y.shape) == (
        "meta",
        (2, 1, 2, 2),
        torch.float32,
        "meta",
        (2,),
    )
    assert images.at(torch.tensor([1, 1]), torch.device("cpu"))[1].tolist() == [5, 5]


# -- idx -------------------------------------------------------------------------------------------

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array):
    array = np.asarray(array, dtype=np.uint8)
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_arrays(seed=0, train=7, test=4, size=6):
    source = np.random.default_rng(seed)
    return [
        array
        for count in (train, test)
        for array in (source.integers(0, 256, (count, size, size)), np.arange(count) % 3)
    ]


def write_idx(folder, arrays, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        raw = idx_bytes(array)
        (folder / f"{name}.gz" if zipped else folder / name).write_bytes(gzip.compress(raw) if zipped else raw)
    return Data(source="idx", path=str(folder))


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_come_back_as_they_were_written(tmp_path, zipped):
    arrays = idx_arrays()
    data = load_data(write_idx(tmp_path, arrays, zipped))
    assert np.array_equal(data.train.pixels[:, 0].numpy(), arrays[0]) and np.array_equal(data.train.labels, arrays[1])
    assert np.array_equal(data.holdout.pixels[:, 0].numpy(), arrays[2]) and np.array_equal(
        data.holdout.labels, arrays[3]
    )
    assert (data.channels, data.image_size) == (1, 6)


def test_the_fingerprint_is_of_the_pixels_and_labels_and_not_of_the_files(tmp_path):
    arrays = idx_arrays()
    base = load_data(write_idx(tmp_path / "gz", arrays, True)).fingerprint
    assert load_data(write_idx(tmp_path / "plain", arrays, False)).fingerprint == base
    found = {base}
    for i, array in enumerate(arrays):
        changed = [a.copy() for a in arrays]
        changed[i].flat[-1] = array.flat[-1] ^ 1
        found.add(load_data(write_idx(tmp_path / f"changed{i}", changed, False)).fingerprint)
    swapped = [arrays[0][::-1], arrays[1][::-1], *arrays[2:]]
    found.add(load_data(write_idx(tmp_path / "swapped", swapped, False)).fingerprint)
    assert len(found) == 6


IDX_DAMAGE = {
    "cut": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:6],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\0",
    "another magic number": lambda raw: b"\0\0\x0d\x03" + raw[4:],
    "another number of dimensions": lambda raw: raw[:3] + bytes((raw[3] + 1,)) + raw[4:],
    "a count that is too large": lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
    "text": lambda raw: b"<html>not found</html>",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", IDX_DAMAGE)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, name, damage):
    spec = write_idx(tmp_path, idx_arrays(), False)
    path = tmp_path / name
    path.write_bytes(IDX_DAMAGE[damage](path.read_bytes()))
    with pytest.raises(BadInput, match=name):
        load_data(spec)


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-5], lambda raw: raw[:20] + b"\xff" * 20 + raw[40:], lambda raw: b"", lambda raw: b"no gzip"],
)
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path, damage):
    spec = write_idx(tmp_path, idx_arrays(), True)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=NAMES[0]):
        load_data(spec)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_idx_file_is_named(tmp_path, name):
    spec = write_idx(tmp_path, idx_arrays(), False)
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match=f"{name}.*no such file"):
        load_data(spec)


def test_more_images_than_labels_are_refused(tmp_path):
    arrays = idx_arrays()
    with pytest.raises(BadInput, match="7 images but 6 labels"):
        load_data(write_idx(tmp_path, [arrays[0], arrays[1][:-1], *arrays[2:]], False))


def test_idx_files_without_images_are_refused(tmp_path):
    with pytest.raises(BadInput, match="train"):
        load_data(write_idx(tmp_path, idx_arrays(train=0), False))


# -- parquet ---------------------------------------------------------------------------------------


def encoded(array, form="PNG", mode=None):
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(array, dtype=np.uint8))
    (picture.convert(mode) if mode else picture).save(buffer, form)
    return buffer.getvalue()


def write_parquet(path, raws, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [raw if raw is None else {"bytes": raw, "path": f"{i}.png"} for i, raw in enumerate(raws)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pa.parquet.write_table(pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())}), path)
    return Data(source="parquet", path=str(path.parent))


def pictures(count, colour, seed=0, size=6):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3) if colour else (count, size, size))


@pytest.mark.parametrize("colour", [True, False])
def test_parquet_images_come_back_as_they_were_written(tmp_path, colour):
    train, test = pictures(9, colour), pictures(4, colour, 1)
    write_parquet(tmp_path / "train.parquet", [encoded(a) for a in train], [i % 3 for i in range(9)])
    data = load_data(write_parquet(tmp_path / "test.parquet", [encoded(a) for a in test], [0, 1, 2, 0]))
    for part, arrays in ((data.train, train), (data.holdout, test)):
        arrays = arrays.transpose(0, 3, 1, 2) if colour else arrays[:, None]
        assert np.array_equal(part.pixels.numpy(), arrays)
    assert (data.channels, data.classes) == (3 if colour else 1, 3)
    assert data.train.labels.tolist() == [i % 3 for i in range(9)] and data.holdout.labels.tolist() == [0, 1, 2, 0]


def test_several_training_files_are_read_in_order_of_their_names(tmp_path):
    first, second = pictures(3, True), pictures(3, True, 1)
    write_parquet(tmp_path / "train-00001.parquet", [encoded(a) for a in second], [1, 1, 1])
    write_parquet(tmp_path / "validation.parquet", [encoded(a) for a in first], [0, 1, 0])
    data = load_data(write_parquet(tmp_path / "train-00000.parquet", [encoded(a) for a in first], [0, 0, 0]))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(data.holdout) == 3


def test_without_a_test_file_every_class_is_split(tmp_path):
    spec = write_parquet(
        tmp_path / "train.parquet", [encoded(a) for a in pictures(40, False)], [i % 4 for i in range(40)]
    )
    data = load_data(spec.model_copy(update={"holdout": 0.2}))
    assert [int((data.holdout.labels == label).sum()) for label in range(4)] == [2, 2, 2, 2]
    assert len(data.train) == 32


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"no image", "damaged image"),
        (b"", "damaged image"),
        (encoded(pictures(1, True)[0])[:60], "damaged image"),
        (encoded(pictures(1, True)[0])[:40] + b"\0" * 30 + encoded(pictures(1, True)[0])[70:], "damaged image"),
        (None, "damaged image"),
        (encoded(pictures(1, True, size=5)[0]), r"\(5, 5, 3\) pixels where others have \(6, 6, 3\)"),
    ],
    ids=["text", "empty", "cut", "overwritten", "missing", "of another size"],
)
def test_a_damaged_row_is_named(tmp_path, raw, what):
    raws = [encoded(a) for a in pictures(4, True)]
    raws[2] = raw
    with pytest.raises(BadInput, match=rf"train\.parquet: row 2 .*{what}"):
        load_data(write_parquet(tmp_path / "train.parquet", raws, [0, 1, 0, 1]))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about what is overwritten
@given(st.integers(0, 2**32 - 1), st.sampled_from(["PNG", "BMP", "TIFF"]))
def test_overwritten_bytes_give_an_image_or_a_named_row_but_no_other_error(tmp_path_factory, seed, form):
    source = np.random.default_rng(seed)
    raw = bytearray(encoded(pictures(1, True)[0], form))
    for at in source.integers(0, len(raw), 3):
        raw[at] = source.integers(0, 256)
    folder = tmp_path_factory.mktemp("fuzz")
    spec = write_parquet(folder / "train.parquet", [encoded(pictures(1, True)[0]), bytes(raw)] * 2, [0, 0, 0, 0])
    try:
        complaint = load_data(spec) and "row 1"
    except BadInput as error:
        complaint = str(error)
    assert "row 1" in complaint


def test_a_png_whose_data_ends_in_the_middle_of_a_chunk_is_a_damaged_row(tmp_path):
    good = encoded(pictures(1, True)[0])
    at = good.index(b"IDAT")
    broken = good[: at - 4] + struct.pack(">I", 20) + good[at:]  # Pillow then reads pixels as the name of a chunk
    raws = [good, good, broken, good]
    with pytest.raises(BadInput, match="row 2"):
        load_data(write_parquet(tmp_path / "train.parquet", raws, [0, 0, 0, 0]))


def test_an_image_that_would_fill_the_memory_is_a_damaged_row(tmp_path):
    bomb = bytearray(encoded(pictures(1, True)[0], "BMP"))
    bomb[18:26] = struct.pack("<ii", 60_000, 60_000)
    raws = [encoded(pictures(1, True)[0])] * 2 + [bytes(bomb)]
    with pytest.raises(BadInput, match="row 2"):
        load_data(write_parquet(tmp_path / "train.parquet", raws, [0, 0, 0]))


@pytest.mark.parametrize("grey_at", [0, 2])
def test_a_grey_image_among_colour_images_is_read_as_colour(tmp_path, grey_at):
    """ImageNet has them."""
    arrays = pictures(4, True)
    raws = [encoded(a, mode="L" if i == grey_at else None) for i, a in enumerate(arrays)]
    data = load_data(write_parquet(tmp_path / "train.parquet", raws, [0, 0, 1, 1]))
    assert data.channels == 3


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_palettes_alpha_and_print_colours_are_read_as_colour(tmp_path, mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    raws = [encoded(a, form, mode) for a in pictures(4, True)]
    data = load_data(write_parquet(tmp_path / "train.parquet", raws, [0, 0, 1, 1]))
    assert data.channels == 3 and len(data.train.pixels.unique()) > 1


def test_a_16_bit_image_is_refused_and_not_clipped(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray((np.arange(36).reshape(6, 6) * 1000).astype(np.uint16)).save(buffer, "PNG")
    with pytest.raises(BadInput, match="row 0"):
        load_data(write_parquet(tmp_path / "train.parquet", [buffer.getvalue()] * 4, [0, 0, 1, 1]))


@pytest.mark.parametrize("labels", [[0, None, 1, 1], [0, -1, 1, 1]])
def test_a_label_that_is_no_class_is_named(tmp_path, labels):
    with pytest.raises(BadInput, match=r"train\.parquet: row 1"):
        load_data(write_parquet(tmp_path / "train.parquet", [encoded(a) for a in pictures(4, True)], labels))


def test_labels_that_are_words_are_refused_by_file(tmp_path):
    images = [{"bytes": encoded(a), "path": None} for a in pictures(2, True)]
    pa.parquet.write_table(pa.table({"image": images, "label": ["cat", "dog"]}), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"train\.parquet"):
        load_data(Data(source="parquet", path=str(tmp_path)))


def test_a_parquet_file_without_rows_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"train\.parquet"):
        load_data(write_parquet(tmp_path / "train.parquet", [], []))


@pytest.mark.parametrize("raw", [b"", b"PAR1 no parquet", None], ids=["empty", "damaged", "other columns"])
def test_a_file_that_is_no_parquet_of_images_is_refused_by_name(tmp_path, raw):
    path = tmp_path / "train.parquet"
    if raw is None:
        pa.parquet.write_table(pa.table({"picture": [1], "label": [1]}), path)
    else:
        path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"train\.parquet"):
        load_data(Data(source="parquet", path=str(tmp_path)))


def test_a_folder_without_training_files_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no train\*\.parquet"):
        load_data(Data(source="parquet", path=str(tmp_path)))


def test_held_out_images_of_another_size_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(a) for a in pictures(4, True)], [0, 0, 1, 1])
    spec = write_parquet(tmp_path / "test.parquet", [encoded(a) for a in pictures(4, True, size=5)], [0, 0, 1, 1])
    with pytest.raises(BadInput, match="held-out images"):
        load_data(spec)


# -- The real data sets ------------------------------------------------------------------------------


def folder_of(shared_data, name):
    if not (shared_data / name).is_dir():
        pytest.skip(f"no {name} in {shared_data}")
    return shared_data / name


REAL = {
    "mnist": ("idx", (1, 28), 10, 60_000, 10_000),
    "flowers64": ("parquet", (3, 64), 5, 2_929, 734),
    "cifar10": ("parquet", (3, 32), 10, 50_000, 10_000),
}


@pytest.mark.parametrize("name", ["mnist", "flowers64", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_a_real_data_set_loads_whole(shared_data, name):
    source, shape, classes, train, holdout = REAL[name]
    folder = folder_of(shared_data, name)
    data = load_data(Data(source=source, path=str(folder)))
    assert (data.channels, data.image_size) == shape
    assert (len(data.train), len(data.holdout), data.classes) == (train, holdout, classes)
    assert data.classes == len(json.loads((folder / "classes.json").read_text())["names"])
    assert data.train.labels.unique().tolist() == data.holdout.labels.unique().tolist() == list(range(classes))
    assert 20 < float(data.train.pixels[:500].float().mean()) < 180


def test_a_part_of_cifar10_loads_with_its_original_pixels(shared_data, tmp_path):
    folder = folder_of(shared_data, "cifar10")
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").symlink_to(folder / f"lossless_{part}.parquet")
    data = load_data(Data(source="parquet", path=str(tmp_path)))
    assert (data.channels, data.image_size, len(data.train), len(data.holdout), data.classes) == (3, 32, 4000, 1000, 10)
