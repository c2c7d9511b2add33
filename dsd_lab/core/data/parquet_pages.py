"""Reads a parquet file's footer, and checks its page headers against it, without unpacking a page.

A parquet reader trusts the size in each page header and allocates up to 2 GiB for it. Page headers can contradict the
footer, so their sizes are added up first; the sum must not exceed the footer's size of the column. The footer is read here
and not with pyarrow, whose `RowGroupMetaData.column` ends the whole process where a footer contradicts itself (pyarrow 25:
a `ParquetException` that nothing catches). Both are in Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, `FileMetaData` and `PageHeader`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAX_HEADER_BYTES = 64 * 2**10
"""Maximum bytes of a page header; pyarrow writes and reads page statistics of a few kilobytes."""
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
Fields = dict[tuple[int, int], Any]
"""(field number, type) -> value. A reader skips a field whose type is another than the format's, and so does this one."""
_TAIL = 8
"""Bytes after the footer: its length, and the letters PAR1."""
_MAX_DEPTH = 8


class InvalidPageHeaders(ValueError):
    """Footer or page headers are damaged or contradict each other; the message says where."""


@dataclass(frozen=True)
class Column:
    """A column chunk as the footer has it."""

    path: str
    """Names from the root of the schema, joined by dots."""
    rows: int
    """Rows of its row group."""
    unpacked: int
    """Bytes of its pages, unpacked."""
    packed: int
    first_page: int
    """Position of its first page in the file."""
    nulls: int | None
    """Values that are null; None where the footer does not count them."""


def columns_of(file: BinaryIO) -> Iterator[Column]:
    """The column chunks of all row groups of a parquet file.

    Raises:
        InvalidPageHeaders: the footer is damaged.
        UnicodeDecodeError: a name is not UTF-8.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    length = int.from_bytes(file.read(4), "little")
    if length > size - _TAIL:
        raise InvalidPageHeaders("the footer is longer than the file")
    file.seek(size - _TAIL - length)
    for group in _items(_struct(io.BytesIO(file.read(length)), 0), 4):
        rows = _number(group, 3)
        for chunk in _items(group, 1):
            column: Fields = chunk.get((3, _STRUCT), {})
            names = column.get((3, _LIST))
            if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
                raise InvalidPageHeaders("a column of the footer has no path")
            first, dictionary = _number(column, 9), column.get((11, _I64), 0)
            statistics = column.get((12, _STRUCT), {})
            yield Column(
                ".".join(name.decode() for name in names),
                rows,
                _number(column, 6),
                _number(column, 7),
                dictionary if 0 < dictionary < first else first,
                statistics.get((3, _I64)),
            )


def check_pages(file: BinaryIO, column: Column) -> None:
    """Check that the pages of a column chunk do not exceed the sizes in the footer.

    Raises:
        InvalidPageHeaders: the pages declare more, or end elsewhere than the footer says.
    """
    at, end, declared = column.first_page, column.first_page + column.packed, 0
    while at < end:
        file.seek(at)
        header = io.BytesIO(file.read(min(_MAX_HEADER_BYTES, end - at)))
        fields = _struct(header, 0)
        unpacked, packed = fields.get((2, _I32), -1), fields.get((3, _I32), -1)
        if unpacked < 0 or packed < 0:
            raise InvalidPageHeaders(f"the page at byte {at} has a damaged header")
        values = fields.get((7, _STRUCT), {}).get((1, _I32), 0)  # of a dictionary
        declared += header.tell() + unpacked
        if declared > column.unpacked or values > unpacked:
            raise InvalidPageHeaders(
                f"the page at byte {at} declares {unpacked:,} bytes and {values:,} different values, more than the footer's {column.unpacked:,} bytes"
            )
        at += header.tell() + packed
    if at != end:
        raise InvalidPageHeaders(f"its last page ends at byte {at:,}, and the footer says {end:,}")


def _items(fields: Fields, number: int) -> list[Fields]:
    """The structs of a list field."""
    found = fields.get((number, _LIST))
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidPageHeaders("the footer lacks its row groups or columns")
    return found


def _number(fields: Fields, number: int) -> int:
    """A size or a position."""
    found = fields.get((number, _I64), -1)
    if not isinstance(found, int) or found < 0:
        raise InvalidPageHeaders("the footer lacks a size, or has a negative one")
    return found


def _struct(raw: io.BytesIO, depth: int) -> Fields:
    """The fields of a struct, but for booleans."""
    if depth > _MAX_DEPTH:
        raise InvalidPageHeaders("a header is nested too deeply")
    found: Fields = {}
    number = 0
    while kind := _byte(raw):
        number = number + (kind >> 4) if kind >> 4 else _signed(raw)
        kind &= 15
        if kind not in (_TRUE, _FALSE):  # the type is the value
            found[number, kind] = _value(raw, kind, depth)
    return found


def _value(raw: io.BytesIO, kind: int, depth: int) -> Any:
    if kind in (_I16, _I32, _I64):
        return _signed(raw)
    if kind == _STRUCT:
        return _struct(raw, depth + 1)
    if kind in (_LIST, _SET):
        head = _byte(raw)
        size, kind = (head >> 4 if head >> 4 < 15 else _unsigned(raw)), head & 15
        if size > _left(raw):  # every item takes a byte
            raise InvalidPageHeaders("a header is truncated")
        return [_byte(raw) if kind in (_TRUE, _FALSE) else _value(raw, kind, depth) for _ in range(size)]
    if kind in (_BYTE, _DOUBLE, _BINARY):
        count = 1 if kind == _BYTE else 8 if kind == _DOUBLE else _unsigned(raw)
        if count > _left(raw):
            raise InvalidPageHeaders("a header is truncated")
        return raw.read(count)
    raise InvalidPageHeaders("a header has a field of an unknown type")  # maps and later types: there are none


def _left(raw: io.BytesIO) -> int:
    return raw.getbuffer().nbytes - raw.tell()


def _byte(raw: io.BytesIO) -> int:
    found = raw.read(1)
    if not found:
        raise InvalidPageHeaders("a header is truncated")
    return found[0]


def _unsigned(raw: io.BytesIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        part = _byte(raw)
        value |= (part & 127) << shift
        if part < 128:
            return value
    raise InvalidPageHeaders("a header has an invalid number")


def _signed(raw: io.BytesIO) -> int:
    value = _unsigned(raw)
    return (value >> 1) ^ -(value & 1)
