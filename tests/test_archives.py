"""Zip files and tar shards that are damaged or crafted: refused in a line, and within a bound of memory."""

import json
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from picturing import changed, encoded, pictures, write_tar, write_zip

from dsd_lab.core.data import load_data
from dsd_lab.core.data.folder import labels_limit
from dsd_lab.errors import BadInput
from dsd_lab.specs.trial import Data

PNG = {f"{'ab'[i % 2]}/{i}.png": encoded(array) for i, array in enumerate(pictures(6))}


def refused(spec):
    """What is said of a data set."""
    with pytest.raises(BadInput) as caught:
        load_data(spec)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    return str(caught.value)


def peak(call):
    """Bytes that a call allocates at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def says(path, name, **fields):
    """Change what the local header and the directory of a zip file say of a member: `size`, `crc` or `method`."""
    raw = bytearray(path.read_bytes())
    places = {"method": ("<H", 8, 10), "crc": ("<I", 14, 16), "size": ("<I", 22, 24)}
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    at = raw.rindex(name.encode()) - 46
    assert raw[at : at + 4] == b"PK\x01\x02"
    for field, value in fields.items():
        form, local, central = places[field]
        struct.pack_into(form, raw, info.header_offset + local, value)
        struct.pack_into(form, raw, at + central, value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"a.txt": b""}, "holds no images"),
        ({"a/1.png": b"", "2.png": b""}, "beside class folders"),
        ({"1.png": b"", "dataset.json": b"[]"}, "as StyleGAN and EDM"),
    ],
)
def test_a_zip_file_that_is_not_understood_is_refused(tmp_path, entries, complaint):
    assert complaint in refused(write_zip(tmp_path / "set.zip", entries))
    (tmp_path / "set.zip").write_bytes(b"no zip")
    assert "not a zip file" in refused(Data(source="zip", path=str(tmp_path / "set.zip")))


def test_a_damaged_image_of_a_zip_file_is_named(tmp_path):
    spec = write_zip(tmp_path / "set.zip", PNG, zipfile.ZIP_STORED)
    raw = (tmp_path / "set.zip").read_bytes()
    assert b"IDAT" in raw
    (tmp_path / "set.zip").write_bytes(raw.replace(b"IDAT", b"IDOT", 1))
    assert "set.zip: a/0.png: damaged image: Bad CRC-32" in refused(spec)


def test_an_entry_that_lies_about_its_size_unpacks_no_more_than_it_declares(tmp_path):
    """64 MiB of zeros that are declared as 100 bytes: `ZipFile.read` would unpack them all, and cut them off then."""
    spec = write_zip(tmp_path / "set.zip", PNG | {"a/0.png": bytes(2**26)})
    says(tmp_path / "set.zip", "a/0.png", size=100)
    assert peak(lambda: refused(spec)) < 2**22
    assert "a/0.png: damaged image: Bad CRC-32" in refused(spec)


def test_an_entry_that_is_shorter_than_it_declares_is_damaged(tmp_path):
    spec = write_zip(tmp_path / "set.zip", PNG)
    says(tmp_path / "set.zip", "a/0.png", size=len(PNG["a/0.png"]) + 10)
    said = refused(spec)
    assert f"holds {len(PNG['a/0.png'])} bytes, and its entry says {len(PNG['a/0.png']) + 10}" in said


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_other_methods_whose_unpacking_has_no_bound_are_refused(tmp_path, method):
    spec = write_zip(tmp_path / "set.zip", PNG, zipfile.ZIP_DEFLATED if method == 99 else method)
    if method == 99:
        says(tmp_path / "set.zip", "a/0.png", method=method)
    assert f"a/0.png: damaged image: compression method {method}; only stored and deflated" in refused(spec)


def test_the_labels_of_a_zip_file_have_the_bound_that_those_of_a_folder_have(tmp_path):
    listed = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(PNG)]})
    most = labels_limit(len(PNG))
    load_data(write_zip(tmp_path / "set.zip", PNG | {"dataset.json": listed.ljust(most)}))
    said = refused(write_zip(tmp_path / "set.zip", PNG | {"dataset.json": listed.ljust(most + 1)}))
    assert f"set.zip: dataset.json: is larger than {most:,} bytes" in said
    (tmp_path / "set").mkdir()
    for name, raw in PNG.items():
        (tmp_path / "set" / name.replace("/", "")).write_bytes(raw)
    (tmp_path / "set" / "dataset.json").write_text(listed.ljust(most + 1))
    assert f"is larger than {most:,} bytes" in refused(Data(source="folder", path=str(tmp_path / "set")))


def test_class_names_of_more_digits_than_an_int_may_have_are_in_the_order_of_their_values(tmp_path):
    long = "1" + "0" * 5000
    spec = write_zip(tmp_path / "set.zip", {f"{name}/{i}.png": encoded(pictures(1, seed=i)[0]) for i, name in enumerate([long, long, "9", "9"])})  # fmt: skip
    assert load_data(spec).class_names == ("9", long)


# -- Tar shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"1.png": b"x", "1.cls": b"-1"}, "train.tar: 1.cls: the label '-1' is no class"),
        ({"1.png": b"x", "1.cls": b"0", "2.png": b"x"}, "2.png has no .cls file"),
        ({"1.png": b"x", "1.jpg": b"x"}, "two images are called 1"),
        ({"1.png": b"x", "1.cls": b"0", "1.CLS": b"1"}, "two labels are called 1"),
    ],
)
def test_shards_that_are_not_understood_are_refused(tmp_path, entries, complaint):
    assert complaint in refused(write_tar(tmp_path / "train.tar", entries))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("name", ["2.png", "2.cls"])
def test_a_member_that_is_no_plain_file_is_not_left_out_in_silence(tmp_path, kind, name):
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, "1.png"
    said = refused(write_tar(tmp_path / "train.tar", {"1.png": encoded(pictures(1)[0]), name: link}))
    assert f"train.tar: {name}: not a plain file (a link, or sparse)" in said


def header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_crafted_header_takes_neither_all_memory_nor_the_stack(tmp_path, kind):
    spec, path = Data(source="tar", path=str(tmp_path)), tmp_path / "train.tar"
    with path.open("wb") as file:  # the size is as declared, in a sparse file
        file.write(header(kind, 2**28))
        file.truncate(2**29)
    assert peak(lambda: refused(spec)) < 2**22
    assert "train.tar: not an uncompressed tar file, or a damaged one: a header of 268,435,456 bytes" in refused(spec)
    path.write_bytes(header(kind, 0) * 5000 + bytes(1024))
    assert "train.tar: not an uncompressed tar file, or a damaged one" in refused(spec)


def test_what_is_no_tar_file_is_refused(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"no tar" * 200)
    spec = Data(source="tar", path=str(tmp_path))
    assert "not an uncompressed tar file" in refused(spec)
    assert "not an uncompressed tar file" in refused(changed(spec, memory="stream"))
