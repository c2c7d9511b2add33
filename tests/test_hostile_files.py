"""Files of others: images, archives and tables that would cost minutes, gigabytes or another program are refused in one line."""

import contextlib
import dataclasses
import gzip
import io
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sweeping import write_idx

from dsd_lab.core.data import idx, load_data, parquet_pages
from dsd_lab.core.data.decoding import decoded
from dsd_lab.core.data.parquet import ParquetRecords
from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import BadFile, open_plain, parse_json, read_json_object, read_plain
from dsd_lab.files.image_files import FORMATS, DamagedImage, grid_bytes, open_grid, open_image
from dsd_lab.specs.trial import Data


def png(width, height, mode="L"):
    """A valid PNG of zeros, of any declared size, without an array of that size."""
    channels = {"L": (1, 0), "RGB": (3, 2)}[mode]
    packer = zlib.compressobj(9)
    row = bytes(1 + channels[0] * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, channels[1], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def encoded(name, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, name)
    return buffer.getvalue()


# -- Images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_of_data_sets_are_decoded(name):
    assert decoded(lambda: encoded(name), "a", Data()).shape == (8, 8, 3)


def test_an_eps_that_is_called_a_png_starts_no_program(tmp_path, monkeypatch):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DamagedImage, match=r"^0\.png: damaged image: cannot identify"):
        decoded(lambda: eps, "0.png", Data())
    assert not started.exists()


@pytest.mark.parametrize("size", [(12_000, 12_000), (2**30, 1)], ids=str)
def test_pixels_that_a_header_declares_are_bounded_before_one_is_decoded(size, monkeypatch):
    bomb = png(*size) if size[1] > 1 else png(1, 1)[:16] + struct.pack(">I", size[0]) + png(1, 1)[20:]
    if size[1] == 1:  # a declared width, with a right checksum
        bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        DamagedImage, match=r"^a: damaged image: (12000 x 12000 pixels, more than|Image size .* exceeds limit)"
    ):
        decoded(lambda: bomb, "a", Data())


def test_a_grid_of_a_report_is_a_png_of_bounded_size(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(6000, 6000))
    with pytest.raises(DamagedImage, match="6000 x 6000 pixels"):
        grid_bytes(tmp_path / "bomb.png")
    with pytest.raises(DamagedImage, match="cannot identify"):
        open_grid(encoded("JPEG"))
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    assert grid_bytes(tmp_path / "good.png") == encoded("PNG")


@pytest.mark.parametrize(
    "fault", [IndexError, AttributeError, RuntimeError, MemoryError, OverflowError, EOFError, KeyError]
)
def test_every_failure_of_a_decoder_is_a_damaged_image(fault, monkeypatch):
    def load(self):
        raise fault("inside a decoder")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DamagedImage, match="inside a decoder"):
        open_image(encoded("PNG"))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[1] / "dsd_lab").rglob("*.py")), ids=lambda p: p.name
)
def test_no_other_module_opens_an_image(path):
    assert path.name == "image_files.py" or "Image.open(" not in path.read_text()


# -- Sizes ---------------------------------------------------------------------------------------------


def test_a_gzip_is_unpacked_no_further_than_its_header_declares(tmp_path, monkeypatch):
    write_idx(tmp_path)
    good = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(good + bytes(64 * 2**20)))
    unpacked, real = [], gzip.GzipFile.readinto
    monkeypatch.setattr(gzip.GzipFile, "readinto", lambda file, view: unpacked.append(len(view)) or real(file, view))
    with pytest.raises(
        BadInput, match=r"train-images-idx3-ubyte\.gz: damaged: more than 2560 bytes of data, 2560 expected"
    ):
        load_data(Data(source="idx", path=str(tmp_path)))
    assert sum(unpacked) <= 2560


def test_an_idx_file_that_declares_gigabytes_is_refused_before_they_are_unpacked(tmp_path):
    write_idx(tmp_path)
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**22, 32, 32)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(head)
    with pytest.raises(BadInput, match=rf"declares 4,294,967,296 bytes .* may have {idx.MAX_BYTES:,}"):
        load_data(Data(source="idx", path=str(tmp_path)))


def table(folder, images, labels=None, **options):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": raw, "path": "a.png"} for i, raw in enumerate(images)], type=kind)
    labels = [i % 2 for i in range(len(images))] if labels is None else labels
    pq.write_table(pa.table({"image": rows, "label": labels}), folder / "train.parquet", **options)
    return ParquetRecords([folder / "train.parquet"], Data(source="parquet", path=str(folder)), folder)


def test_a_parquet_file_whose_images_repeat_is_not_multiplied_in_memory_nor_without_end(tmp_path):
    records = table(tmp_path, [png(500, 500) + bytes(2**20)] * 80, dictionary_pagesize_limit=2**30, compression="zstd")
    before = pa.total_allocated_bytes()
    taken = []
    with pytest.raises(
        BadInput, match=r"train\.parquet: row \d+: its images become more than .* bytes, 100 times the file"
    ):
        taken.extend(pa.total_allocated_bytes() - before for _ in records.items())
    assert max(taken) < 12 * 2**20  # a few images, and not 64


def test_a_parquet_file_that_declares_more_than_its_size_can_hold_is_refused_by_its_footer(tmp_path):
    records = table(tmp_path, [bytes(100 * 2**20)], use_dictionary=False, compression="zstd")
    with pytest.raises(BadInput, match=r"the column 'image.bytes' declares .* bytes in one row group"):
        records.read_labels()
    many = table(tmp_path, [b""] * 200_000, labels=[0] * 200_000)
    with pytest.raises(BadInput, match=r"declares 200,000 rows in .* bytes"):
        many.read_labels()


def lying(folder, of, says):
    """A parquet file whose first page says another size than it has; of its own column's size the footer tells."""
    records, path = table(folder, [bytes(of)], use_dictionary=False, compression="zstd"), folder / "train.parquet"
    raw = path.read_bytes()
    said = parquet_pages._struct(io.BytesIO(raw[4:]), 0)[
        2, parquet_pages._I32
    ]  # behind the four bytes of the file's mark
    old, new = varint(said), varint(says)
    at = raw.index(old, 4)
    assert said >= of and at < 16 and len(old) == len(new)
    path.write_bytes(raw[:at] + new + raw[at + len(old) :])
    return records


@pytest.mark.parametrize(("name", "first", "complaint"), [(b"a.png", 0, "damaged after row 0: .*utf-8"), (b"bytes", 0, "not a parquet file: .*utf-8"), (b"label", 1, "not a parquet file: .*utf-8")])  # fmt: skip
def test_text_of_a_parquet_file_that_is_no_utf8_is_damage(name, first, complaint, tmp_path):
    """`first` leaves so many as they are: a column's name stands in the schema and in every row group."""
    table(tmp_path, [encoded("PNG")], compression="none", use_dictionary=False, store_schema=False)
    raw = (tmp_path / "train.parquet").read_bytes()
    kept, *rest = raw.split(name)
    for part in rest:
        kept += (name if first > 0 else b"\xff" + name[1:]) + part
        first -= 1
    (tmp_path / "train.parquet").write_bytes(kept)
    with pytest.raises(BadInput, match=complaint) as caught:
        load_data(Data(source="parquet", path=str(tmp_path)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("label", "complaint"), [("label", "holds 2 labels"), (None, "holds 2 images|holds more images")])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3])
def test_a_parquet_file_that_declares_other_rows_than_it_holds_is_refused(
    rows, label, complaint, tmp_path, monkeypatch
):
    table(tmp_path, [encoded("PNG")] * 2)
    opened = ParquetRecords._opened

    def lying(self, *given, **named):
        found = opened(self, *given, **named)
        told = SimpleNamespace(schema_arrow=found.schema_arrow, read=found.read, iter_batches=found.iter_batches)
        told.metadata = SimpleNamespace(num_rows=rows, num_row_groups=0)
        return told

    monkeypatch.setattr(ParquetRecords, "_opened", lying)
    with pytest.raises(BadInput, match=f"declares {rows} rows and ({complaint})"):
        load_data(Data(source="parquet", path=str(tmp_path), label_column=label))


def test_the_type_of_a_column_is_shown_without_control_characters(tmp_path):
    pq.write_table(pa.table({"image": [{"byt\x05s": b""}], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=r"is struct<byt\\x05s: .*, not images") as caught:
        load_data(Data(source="parquet", path=str(tmp_path)))
    assert str(caught.value).isprintable()


def varint(number):
    """As Thrift's compact protocol writes it."""
    left, found = number << 1, b""
    while left >= 128:
        left, found = left >> 7, found + bytes([left & 127 | 128])
    return found + bytes([left])


def test_a_parquet_page_that_declares_more_than_the_footer_is_refused_before_it_is_allocated(tmp_path):
    records = lying(tmp_path, 20 * 2**20, 120 * 2**20)
    before = pa.total_allocated_bytes()
    with pytest.raises(BadInput, match=r"train\.parquet: the column 'image.bytes': the page at byte 4 declares 125,829,120 bytes"):  # fmt: skip
        records.read_labels()
    assert pa.total_allocated_bytes() - before < 2**20


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"compression": "none"}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 64}, {"write_page_checksum": True}, {"row_group_size": 2}, {"write_statistics": False}], ids=str)  # fmt: skip
def test_pages_of_every_kind_that_pyarrow_writes_are_read(options, tmp_path):
    kept = [encoded("PNG", (4, 4 + i)) for i in range(7)]
    records = table(tmp_path, kept, **options)
    assert records.read_labels().tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert [read() for _, read in records.items()] == kept


def test_a_parquet_footer_that_contradicts_itself_ends_no_process(tmp_path):
    """Its schema says that no image lacks bytes, its statistics count those that do: pyarrow's `column` ends the process."""
    table(tmp_path, [encoded("PNG")] * 2, labels=[0, 1])
    path = tmp_path / "train.parquet"
    optional, required = (bytes([0x25, repetition, 0x18, 5]) + b"bytes" for repetition in (2, 0))
    assert path.read_bytes().count(optional) == 1
    path.write_bytes(path.read_bytes().replace(optional, required))
    with pytest.raises(BadInput, match=r"train\.parquet") as caught:
        load_data(Data(source="parquet", path=str(tmp_path)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("seed", range(3))
def test_a_footer_of_any_damage_is_read_or_refused(seed, tmp_path):
    table(tmp_path, [encoded("PNG")] * 7, row_group_size=2)
    whole, luck = (tmp_path / "train.parquet").read_bytes(), np.random.default_rng(seed)
    for _ in range(1_000):
        raw = bytearray(whole)
        for at in luck.integers(len(raw) - 1_500, len(raw), 2):
            raw[at] = luck.integers(256)
        with contextlib.suppress(parquet_pages.InvalidPageHeaders, UnicodeDecodeError):
            for column in parquet_pages.columns_of(io.BytesIO(raw)):
                assert min(column.rows, column.packed, column.unpacked) >= 0


def test_columns_of_a_footer_are_those_that_pyarrow_reads(tmp_path):
    table(tmp_path, [encoded("PNG", (4, 4 + i)) for i in range(7)], row_group_size=2)
    metadata = pq.ParquetFile(tmp_path / "train.parquet").metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    expected = [
        (c.path_in_schema, group.num_rows, c.total_uncompressed_size, c.total_compressed_size, c.dictionary_page_offset or c.data_page_offset, c.statistics.null_count)
        for group in groups
        for c in map(group.column, range(group.num_columns))
    ]  # fmt: skip
    with (tmp_path / "train.parquet").open("rb") as file:
        assert [dataclasses.astuple(column) for column in parquet_pages.columns_of(file)] == expected


def test_a_parquet_file_of_ordinary_images_is_read_as_before(tmp_path):
    kept = [encoded("PNG", (4, 4))] * 6
    records = table(tmp_path, kept)
    assert records.read_labels().tolist() == [0, 1, 0, 1, 0, 1]
    assert [read() for _, read in records.items()] == kept


@pytest.mark.parametrize("source", ["idx", "parquet", "folder"])
def test_a_pipe_in_place_of_a_data_file_is_refused_and_not_waited_on(source, tmp_path):
    if source == "folder":
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "0.png").write_bytes(encoded("PNG"))
        os.mkfifo(tmp_path / "a" / "1.png")
    else:
        os.mkfifo(tmp_path / {"idx": "train-images-idx3-ubyte", "parquet": "train.parquet"}[source])
    with pytest.raises(BadInput, match=r"is not a regular file|neither a file nor a folder"):
        load_data(Data(source=source, path=str(tmp_path)))


def test_a_bounded_reader_takes_plain_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadFile, match="is not a regular file"):
            open_plain(path)
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_plain(tmp_path / "link", 5) == b"12345"
    with pytest.raises(BadFile, match="is larger than 4 bytes"):
        read_plain(tmp_path / "a", 4)
    with pytest.raises(BadInput, match="pipe: is not a regular file"):
        read_json_object(tmp_path / "pipe")


@pytest.mark.parametrize(
    "raw", [b"[" + b"[]," * 4_000_000 + b"[]]", b'"\\ud800"', b"[NaN]", b"\xff", b"[" * 100_000], ids=range(5)
)
def test_json_that_would_fill_the_memory_or_no_file_can_hold_is_none(raw):
    with pytest.raises((ValueError, RecursionError)):
        parse_json(raw)


def test_json_that_holds_text_beyond_ascii_is_read():
    assert parse_json(b'{"a": ["\\ud83d\\ude00", 1e3]}') == {"a": ["\U0001f600", 1000.0]}
    assert np.isfinite(parse_json(b"1e308"))


def test_what_names_the_classes_of_a_folder_is_read_no_further_than_its_images_need(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "dataset.json").write_text('{"labels": [' + "[" * 2**21 + "]}")
    with pytest.raises(BadInput, match=r"dataset\.json: is larger than .* bytes: too much for the 1 images beside it"):
        load_data(Data(source="folder", path=str(tmp_path)))
    (tmp_path / "idx").mkdir()
    write_idx(tmp_path / "idx")
    for path in list((tmp_path / "idx").iterdir()):
        path.rename(path.with_name(f"emnist-letters-{path.name.replace('t10k', 'test')}"))
    (tmp_path / "idx" / "emnist-letters-mapping.txt").write_text("0 65\n" * 2**18)
    with pytest.raises(BadInput, match=r"mapping\.txt: is larger than 1,048,576 bytes"):
        load_data(Data(source="idx", path=str(tmp_path / "idx")))
