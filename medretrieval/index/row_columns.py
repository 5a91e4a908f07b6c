"""Everything of the rows of an index but the pictures, read from parquet and checked.

It lies in the slices themselves, and once more, for whoever must not read the pictures to get at
it, in a file of its own: `columns.parquet`, derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError
from medretrieval.index.columns import Coded, LabelColumn
from medretrieval.index.table import CODED, MAX_LABELS, MAX_TEXT, schema_of

T = TypeVar("T", bound=np.generic)

# What a manipulated file may claim, so that reading it fills no memory: bytes of a row on average
# besides its pictures, and all labels together.
_ROW_BYTES = 64 << 10
_MEAN_LABELS = 500
_SHARD = "shard"
_MASKED = "annotated"
_NO_FILE_COLUMNS = ("row_id", "image", "mask")


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """Everything of the rows but the pictures, in memory.

    Attributes:
        volume_ids: names, in order of first appearance.
        volume: (n,) int32, code into `volume_ids`.
        patient, modality, region: (n,) names.
        attributes: extra columns by name, (n,) text.
        slice_index: (n,) int64.
        position_mm: (n,) float64, NaN where unknown.
        spacing: (n, 3) float64, (row, column, through-plane) in mm, NaN where unknown.
        labels: for each row names.
        annotated: (n,) bool, the row has a mask.
    """

    volume_ids: list[str]
    volume: NDArray[np.int32]
    patient: Coded
    modality: Coded
    region: Coded
    attributes: Mapping[str, Coded]
    slice_index: NDArray[np.int64]
    position_mm: NDArray[np.float64]
    spacing: NDArray[np.float64]
    labels: LabelColumn
    annotated: NDArray[np.bool_]


def columns_of(
    tables: Sequence[Any], paths: Sequence[Path], attributes: Sequence[str], *, pictures: bool
) -> Columns:
    """Check what was read of the shards of an index and put it together.

    Args:
        tables: of each shard all columns but the bytes of the pictures.
        pictures: whether every row has an image; otherwise none has one.

    Raises:
        IndexFormatError: rows out of order, missing values, names that are too long.
    """
    first = 0
    for table, path in zip(tables, paths, strict=True):
        _check_values(table, path, attributes)
        _check_pictures(table, path, pictures=pictures)
        _check_order(table, path, first)
        first += len(table)
    whole = pa.concat_tables(tables).unify_dictionaries()
    return _columns(whole, _known(whole.column("mask")), paths[0].parent, attributes)


def columns_schema(attributes: Sequence[str]) -> Any:
    """The schema of `columns.parquet`: that of the slices without row_id and pictures, but with the
    number of the shard that a row is in, and whether it has a mask."""
    fields = [field for field in schema_of(attributes) if field.name not in _NO_FILE_COLUMNS]
    return pa.schema([*fields, pa.field(_SHARD, pa.int32()), pa.field(_MASKED, pa.bool_())])


def write_columns(path: Path, tables: Sequence[Any], attributes: Sequence[str]) -> None:
    """Write `columns.parquet`.

    Args:
        tables: as for `columns_of`, checked.
    """
    schema = columns_schema(attributes)
    named = [*CODED, *attributes, "labels.list.element", "spacing.list.element", "slice_index"]
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=named) as writer:
        for shard, table in enumerate(tables):
            plain = table.select([n for n in schema.names if n not in (_SHARD, _MASKED)])
            numbers = pa.array(np.full(len(table), shard, np.int32))
            masked = pa.array(_known(table.column("mask")))
            columns = [*plain.columns, numbers, masked]
            whole = pa.table(columns, names=schema.names)
            writer.write_table(whole.cast(schema))


def read_columns(
    path: Path, *, rows: int, shards: int, attributes: Sequence[str]
) -> tuple[Columns, list[int]]:
    """Read `columns.parquet`.

    Args:
        rows, shards: what the manifest promises.

    Returns:
        The columns, and how many rows each shard has.

    Raises:
        IndexFormatError: not parquet, cut off, other columns or values, another number of rows or
            shards.
    """
    try:
        footer = pq.read_metadata(path, memory_map=True)
        if not footer.schema.to_arrow_schema().equals(
            columns_schema(attributes), check_metadata=False
        ):
            raise IndexFormatError(f"{path} has other columns than those of this index")
        check_footer(footer, path)
        if footer.num_rows != rows:
            raise IndexFormatError(f"{path} has {footer.num_rows} rows, the manifest says {rows}")
        coded = [*CODED, *attributes]
        with pq.ParquetFile(path, metadata=footer, memory_map=True, read_dictionary=coded) as file:
            whole = file.read(use_threads=False)
        whole.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, error) from None
    _check_values(whole, path, attributes)
    shard = _joined(whole.column(_SHARD), np.int32)
    steps = np.diff(shard, prepend=-1)
    ordered = steps[0] == 1 and (steps >= 0).all() and (steps <= 1).all()
    if whole.column(_SHARD).null_count or not ordered:
        raise IndexFormatError(f"{path}: the shards are not in order")
    if whole.column(_MASKED).null_count or int(shard[-1]) != shards - 1:
        raise IndexFormatError(f"{path} is not of the {shards} shards that the manifest lists")
    annotated = np.asarray(whole.column(_MASKED).combine_chunks().to_numpy(zero_copy_only=False))
    columns = _columns(whole.unify_dictionaries(), annotated, path, attributes)
    return columns, np.bincount(shard, minlength=shards).tolist()


def _columns(
    whole: Any, annotated: NDArray[np.bool_], where: Path, attributes: Sequence[str]
) -> Columns:
    position = whole.column("position_mm")
    volume = _coded(whole, "volume_id", where)
    return Columns(
        volume_ids=volume.names,
        volume=volume.codes,
        patient=_coded(whole, "patient_id", where),
        modality=_coded(whole, "modality", where),
        region=_coded(whole, "region", where),
        attributes={name: _coded(whole, name, where) for name in attributes},
        slice_index=_joined(whole.column("slice_index"), np.int64),
        position_mm=np.where(_known(position), _joined(position, np.float64), np.nan),
        spacing=np.concatenate([_spacing(c, where) for c in whole.column("spacing").chunks]),
        labels=LabelColumn.join([_labels(c, where) for c in whole.column("labels").chunks]),
        annotated=annotated,
    )


def _coded(table: Any, name: str, where: Path) -> Coded:
    """A column whose chunks have one dictionary in common, with the names that occur, in order."""
    chunks = table.column(name).chunks
    _check_length(chunks[0].dictionary, name, where)
    names = chunks[0].dictionary.to_pylist()
    codes = np.concatenate([_numbers(chunk.indices.cast(pa.int32()), np.int32) for chunk in chunks])
    first = np.full(len(names), -1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # the last to be assigned stays
    if (first >= 0).all() and (np.diff(first) > 0).all() and len(set(names)) == len(names):
        return Coded(codes, names)
    # Another program's dictionary: in another order, with names that no row has, or one twice.
    places: dict[str, int] = {}
    new = np.zeros(len(names), dtype=np.int32)
    for old in np.argsort(first, kind="stable")[int((first < 0).sum()) :].tolist():
        new[old] = places.setdefault(names[old], len(places))
    return Coded(new[codes], list(places))


def _labels(column: Any, where: Path) -> LabelColumn:
    flat = column.flatten().dictionary_encode()
    if flat.null_count:
        raise IndexFormatError(f"{where}: a label has no name")
    _check_length(flat.dictionary, "label", where)
    offsets = _numbers(column.offsets, np.int32).astype(np.int64)
    if (np.diff(offsets) > MAX_LABELS).any():
        raise IndexFormatError(f"{where}: a row has more than {MAX_LABELS} labels")
    names = flat.dictionary.to_pylist()
    return LabelColumn(offsets - offsets[0], _numbers(flat.indices, np.int32), names)


def _spacing(column: Any, where: Path) -> NDArray[np.float64]:
    known = _known(pa.chunked_array([column]))
    numbers = column.flatten()  # leaves out the rows that have none
    lengths = _numbers(pc.list_value_length(column).drop_null(), np.int32)
    if numbers.null_count or (lengths != 3).any():
        raise IndexFormatError(f"{where}: a spacing does not have three numbers")
    spacing = np.full((len(column), 3), np.nan)
    spacing[known] = _numbers(numbers, np.float64).reshape(-1, 3)
    return spacing


def _known(column: Any) -> NDArray[np.bool_]:
    """(n,) which rows of a column are not null."""
    return _joined(column.is_valid().cast(pa.uint8()), np.bool_)


def _joined(column: Any, dtype: type[T]) -> NDArray[T]:
    """The numbers of a column, as an array of its own; anything where it is null."""
    parts = [_numbers(chunk, dtype) for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype), *parts])


def _numbers(array: Any, dtype: type[T]) -> NDArray[T]:
    """The numbers of an Arrow array of this type; read-only, nothing is copied.

    Arrow's own `to_numpy` does the same but imports pandas, which takes longer than the reading.
    """
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset :][: len(array)]


def _check_length(names: Any, what: str, where: Path) -> None:
    if (pc.max(pc.utf8_length(names)).as_py() or 0) > MAX_TEXT:
        raise IndexFormatError(f"{where}: a {what} is longer than {MAX_TEXT} characters")


def check_footer(footer: Any, path: Path) -> None:
    """Refuse a parquet file that would take more memory than its rows can need, before it is read.

    Raises:
        IndexFormatError: see there.
    """
    rows, small, labels = footer.num_rows, 0, 0
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if not column.path_in_schema.endswith(".bytes"):
                small += column.total_uncompressed_size
            if column.path_in_schema.startswith("labels"):
                labels += column.num_values
    if small > _ROW_BYTES * max(rows, 16) or labels > _MEAN_LABELS * max(rows, 16) + MAX_LABELS:
        raise IndexFormatError(
            f"{path} claims {small} bytes and {labels} labels for {rows} rows besides the "
            "pictures, which no index needs; do not use it, it is damaged or manipulated"
        )


def _check_values(table: Any, path: Path, attributes: Sequence[str]) -> None:
    for name in (*CODED, "slice_index", *attributes):
        if table.column(name).null_count:
            raise IndexFormatError(f"{path}: column {name} has empty values")
    if table.column("labels").null_count:
        raise IndexFormatError(f"{path}: a row has no list of labels")


def _check_pictures(table: Any, path: Path, *, pictures: bool) -> None:
    missing = table.column("image").null_count
    if pictures and missing:
        raise IndexFormatError(f"{path}: a row has no image")
    if not pictures and (missing < len(table) or _known(table.column("mask")).any()):
        raise IndexFormatError(
            f"{path}: a row has an image or mask, the manifest says that none has"
        )


def _check_order(table: Any, path: Path, first: int) -> None:
    ids = table.column("row_id")
    if ids.null_count:
        raise IndexFormatError(f"{path}: column row_id has empty values")
    numbers = _joined(ids, np.int64)
    if not np.array_equal(numbers, np.arange(first, first + len(numbers))):
        raise IndexFormatError(
            f"{path}: row_id is not {first}, {first + 1}, ... in order, so rows and embeddings "
            "do not belong together; fetch or build the index again"
        )


def damaged(path: Path, error: Exception) -> IndexFormatError:
    """The error for a file that is no readable parquet."""
    return IndexFormatError(
        f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); it is cut off or "
        "damaged, fetch or build the index again"
    )
