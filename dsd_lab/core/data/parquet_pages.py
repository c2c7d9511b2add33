"""Checks the page headers of a parquet file against its footer, without unpacking a page.

A parquet reader trusts the size in each page header and allocates up to 2 GiB for it. `parquet` checks the footer, but
page headers can contradict it. So the sizes in the headers are added up first; their sum must not exceed the footer's
size of the column. Headers are in Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, `PageHeader`).
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

_MAX_HEADER_BYTES = 64 * 2**10
"""Maximum bytes of a header; pyarrow writes and reads page statistics of a few kilobytes."""
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12
_UNCOMPRESSED, _COMPRESSED, _DICTIONARY, _VALUES = 2, 3, 7, 1
"""Field numbers: sizes and `dictionary_page_header` of `PageHeader`, and the number of values of the latter."""
_MAX_DEPTH = 8


class InvalidPageHeaders(ValueError):
    """Page headers are damaged or contradict the footer; the message says where."""


def check_pages(file: BinaryIO, column: Any) -> None:
    """Check that the pages of a column chunk do not exceed the sizes in the footer.

    Args:
        file: the open parquet file.
        column: pyarrow's `ColumnChunkMetaData`.

    Raises:
        InvalidPageHeaders: the pages declare more, or end elsewhere than the footer says.
    """
    dictionary_at, at, declared = column.dictionary_page_offset or 0, column.data_page_offset, 0
    at = dictionary_at if 0 < dictionary_at < at else at
    end = at + column.total_compressed_size
    while at < end:
        file.seek(at)
        header = io.BytesIO(file.read(min(_MAX_HEADER_BYTES, end - at)))
        fields = _struct(header, 0)
        unpacked, packed = fields.get(_UNCOMPRESSED), fields.get(_COMPRESSED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise InvalidPageHeaders(f"the page at byte {at} has a damaged header")
        dictionary = fields.get(_DICTIONARY)
        values = dictionary.get(_VALUES, 0) if isinstance(dictionary, dict) else 0
        declared += header.tell() + unpacked
        if declared > column.total_uncompressed_size or values > unpacked:
            raise InvalidPageHeaders(
                f"the page at byte {at} declares {unpacked:,} bytes and {values:,} different values, more than the footer's {column.total_uncompressed_size:,} bytes"
            )
        at += header.tell() + packed
    if at != end:
        raise InvalidPageHeaders(f"its last page ends at byte {at:,}, and the footer says {end:,}")


def _struct(raw: BinaryIO, depth: int) -> dict[int, Any]:
    """Integer and struct fields by number; fields of other types are skipped."""
    if depth > _MAX_DEPTH:
        raise InvalidPageHeaders("a page header is nested too deeply")
    found: dict[int, Any] = {}
    number = 0
    while kind := _byte(raw):
        number = number + (kind >> 4) if kind >> 4 else _signed(raw)
        value = _value(raw, kind & 15, depth)
        if isinstance(value, (int, dict)):
            found[number] = value
    return found


def _value(raw: BinaryIO, kind: int, depth: int) -> Any:
    if kind in _INTEGERS:
        return _signed(raw)
    if kind == _STRUCT:
        return _struct(raw, depth + 1)
    if kind in _BOOLEANS:
        return None  # the type is the value
    if kind in (_BYTE, _DOUBLE, _BINARY):
        count = 1 if kind == _BYTE else 8 if kind == _DOUBLE else _unsigned(raw)
        if count > _MAX_HEADER_BYTES or len(raw.read(count)) < count:
            raise InvalidPageHeaders("a page header is truncated")
        return None
    raise InvalidPageHeaders(
        "a page header has a field of an unknown type"
    )  # lists, maps and later types: `PageHeader` has none


def _byte(raw: BinaryIO) -> int:
    found = raw.read(1)
    if not found:
        raise InvalidPageHeaders("a page header is truncated")
    return found[0]


def _unsigned(raw: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        part = _byte(raw)
        value |= (part & 127) << shift
        if part < 128:
            return value
    raise InvalidPageHeaders("a page header has an invalid number")


def _signed(raw: BinaryIO) -> int:
    value = _unsigned(raw)
    return (value >> 1) ^ -(value & 1)
