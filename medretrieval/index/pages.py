"""How much memory a parquet file takes when it is read: found in its pages, before any is read.

A file of a few kilobytes can grow to gigabytes, by its compression, or by a dictionary whose one
long value stands in every row. What its footer says of sizes is of no use, as nothing has to agree
with it; but the reader takes exactly the pages that are walked here.
Format: https://github.com/apache/parquet-format (README.md, Encodings.md, parquet.thrift) and the
compact protocol of Apache Thrift, of which page headers are written.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medretrieval.errors import IndexFormatError

_PICTURE_BYTES = 256 << 20  # of a row group; ours have 8 MB
# Of all other columns of a file: ours grow 10 times at most, where values repeat.
_OTHER_BYTES = 64 << 20
_GROWTH = 128
_MAX_PAGES = 10_000  # of a column in a row group; ours have one for each MB
_LEVEL_BYTES = 4  # of a value: where lists begin, and whether it is null
_INDEX_BYTES = 4
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_DELTA_BYTE_ARRAY = 7  # Encoding: each value may repeat the one before it, so a page has no bound
_HEADERS = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}  # fields: header, encoding in it
_MAX_DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class _Page:
    """What the header of a page says; `bytes` without compression, from `start` on in the file."""

    kind: int
    start: int
    bytes: int
    values: int
    encoding: int


class _MalformedError(Exception):
    """A page header that the reader cannot read either."""


def check_pages(path: Path) -> None:
    """Refuse a file of slices or columns that would take much more memory than it needs.

    One that is no parquet at all passes: whoever reads it says so, and takes no memory.

    Raises:
        IndexFormatError: see there.
    """
    try:
        footer = pq.read_metadata(path, memory_map=True)
    except (OSError, ValueError, pa.ArrowException):
        return
    others = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        allowed = _OTHER_BYTES + _GROWTH * len(data)
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                try:
                    needed = _needed(data, column)
                except (_MalformedError, IndexError) as error:
                    raise _refused(path, f"{column.path_in_schema} is damaged ({error})") from None
                picture = column.path_in_schema.endswith(".bytes")
                others += 0 if picture else needed
                if (picture and needed > _PICTURE_BYTES) or others > allowed:
                    raise _refused(
                        path,
                        f"{column.path_in_schema} would take {max(needed, others) >> 20} MB of "
                        f"memory, at most {(_PICTURE_BYTES if picture else allowed) >> 20} are "
                        "allowed for a file like this",
                    )


def _needed(data: mmap.mmap, column: Any) -> int:
    """How many bytes a column of a row group takes in memory."""
    plain = dictionary = longest = values = 0
    for page in _pages(data, column):
        if page.kind == _DICTIONARY:
            dictionary += page.bytes
            longest = max(longest, _longest(data, page, column))
        else:
            plain += page.bytes
            values += page.values
        if page.encoding == _DELTA_BYTE_ARRAY:
            raise _MalformedError("it has an encoding that an index must not have")
    # The names of a row are kept as numbers of the dictionary, all other text is repeated.
    text = column.physical_type == "BYTE_ARRAY" and "." in column.path_in_schema
    each = (longest if text else 8) + _LEVEL_BYTES + _INDEX_BYTES
    return plain + dictionary + values * each


def _longest(data: mmap.mmap, page: _Page, column: Any) -> int:
    """The longest text in a dictionary, or what it has at most."""
    if column.physical_type != "BYTE_ARRAY" or column.compression != "UNCOMPRESSED":
        return page.bytes
    place, longest = page.start, 0
    for _ in range(min(page.values, page.bytes // 4)):  # each with its length before it
        length = int.from_bytes(data[place : place + 4], "little")
        longest = max(longest, length)
        place += 4 + length
    return min(longest, page.bytes)


def _pages(data: mmap.mmap, column: Any) -> Iterator[_Page]:
    """Yield the pages of a column of a row group, which are all that the reader takes of it."""
    place = int(column.data_page_offset)
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < place:
        place = int(column.dictionary_page_offset)
    end = place + int(column.total_compressed_size)
    if not 0 < place <= end <= len(data):
        raise _MalformedError("it lies outside of the file")
    seen = 0
    for _ in range(_MAX_PAGES):
        if seen >= column.num_values:
            break
        header, place = _struct(data, place)
        page = _page(header, place)
        size = _number(header, 3)
        if place + size > end:
            raise _MalformedError("a page reaches beyond its end")
        place += size
        if page is not None:
            yield page
            seen += page.values if page.kind != _DICTIONARY else 0
    if seen != column.num_values:
        raise _MalformedError(f"it has {seen} values or more, its footer says {column.num_values}")


def _page(header: dict[int, Any], start: int) -> _Page | None:
    """The page that a header describes, None for a kind that the reader skips."""
    kind = _number(header, 1)
    if kind not in _HEADERS:
        return None
    field, encoding = _HEADERS[kind]
    about = header.get(field)
    if not isinstance(about, dict):
        raise _MalformedError("a page has no header of its kind")
    return _Page(
        kind=kind,
        start=start,
        bytes=_number(header, 2),
        values=_number(about, 1),
        encoding=_number(about, encoding),
    )


def _number(fields: dict[int, Any], field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise _MalformedError("a page header lacks a number")
    return value


def _struct(data: mmap.mmap, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact protocol: its numbers and structs by field, and its end."""
    if depth > _MAX_DEPTH:
        raise _MalformedError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    field = 0
    while True:
        start = data[place]
        place += 1
        if start == 0:
            return fields, place
        if start >> 4:
            field += start >> 4
        else:
            field, place = _zigzag(data, place)
        if field in fields:  # readers differ in which one counts
            raise _MalformedError("a page header has a field twice")
        fields[field], place = _value(data, place, start & 15, depth)


def _value(data: mmap.mmap, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """Read a value, None for a kind that is passed over."""
    if kind in (1, 2):  # true and false
        return None, place
    if kind == 3:  # a byte
        return None, place + 1
    if kind in (4, 5, 6):  # whole numbers
        return _zigzag(data, place)
    if kind == 7:  # a double
        return None, place + 8
    if kind == 8:  # bytes
        length, place = _varint(data, place)
        return None, place + length
    if kind == 12:
        return _struct(data, place, depth + 1)
    raise _MalformedError("a page header has a field that the format does not know")


def _zigzag(data: mmap.mmap, place: int) -> tuple[int, int]:
    number, place = _varint(data, place)
    return (number >> 1) ^ -(number & 1), place


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise _MalformedError("a number of a page header does not end")


def _refused(path: Path, problem: str) -> IndexFormatError:
    return IndexFormatError(
        f"{path} is not read: the column {problem}. No index needs that; do not use it, it is "
        "damaged or manipulated"
    )
