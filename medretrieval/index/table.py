"""The rows of an index in parquet shards, as `datasets` and the Hub's viewer read them.

Row groups are bounded, so that a picture can be fetched without reading much of its neighbours.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError
from medretrieval.index.columns import FIXED, MAX_CASE_LABELS, Coded, LabelColumn

# Opening costs 0.2 ms a row group, so tiny pictures go in large groups; fetching a picture reads
# its group, so that the bytes of one are bounded too.
GROUP_ROWS = 2048
GROUP_BYTES = 8 << 20
SHARD_BYTES = 256 << 20
MAX_TEXT = 500  # characters of a name; keeps a manipulated file from filling the memory
_CACHED_GROUPS = 16
MAX_LABELS = MAX_CASE_LABELS + 65535  # of one row: those of the case and every mask value
_CODED = ("volume_id", "patient_id", "modality", "region")

T = TypeVar("T", bound=np.generic)

_VALUE_TYPES = {
    "row_id": "int64",
    "volume_id": "string",
    "patient_id": "string",
    "modality": "string",
    "region": "string",
    "slice_index": "int64",
    "position_mm": "float64",
}
# What `datasets.Features` writes into the schema; literal, so that writing needs no such package.
_FEATURES: dict[str, Any] = {
    **{name: {"dtype": dtype, "_type": "Value"} for name, dtype in _VALUE_TYPES.items()},
    "spacing": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"},
    "labels": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
}
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {
    "row_id": pa.int64(),
    "volume_id": pa.string(),
    "patient_id": pa.string(),
    "modality": pa.string(),
    "region": pa.string(),
    "slice_index": pa.int64(),
    "position_mm": pa.float64(),
    "spacing": pa.list_(pa.float64()),
    "labels": pa.list_(pa.string()),
    "image": _PICTURE,
    "mask": _PICTURE,
}


def schema_of(attributes: Sequence[str] = ()) -> Any:
    """Return the schema of a shard: the fixed columns, then a text column for each attribute."""
    extra = {name: {"dtype": "string", "_type": "Value"} for name in attributes}
    features = {"info": {"features": {**_FEATURES, **extra}}}
    return pa.schema(
        [*((name, _TYPES[name]) for name in FIXED), *((name, pa.string()) for name in attributes)],
        metadata={"huggingface": json.dumps(features)},
    )


SCHEMA = schema_of()


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One slice as it is stored; `image` and `mask` are PNG."""

    row_id: int
    volume_id: str
    patient_id: str
    modality: str
    region: str
    slice_index: int
    position_mm: float | None
    spacing: tuple[float, float, float] | None
    labels: tuple[str, ...]
    image: bytes
    mask: bytes | None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def to_arrow(self) -> dict[str, Any]:
        fixed = {name: value for name, value in vars(self).items() if name != "attributes"}
        return {
            **self.attributes,
            **fixed,
            "image": {"bytes": self.image, "path": None},
            "mask": None if self.mask is None else {"bytes": self.mask, "path": None},
        }


class ShardWriter:
    """Writes rows to `folder/slices-00000.parquet` and on; a new shard after `shard_bytes`.

    The bytes written depend on the rows alone, not on when they were given.

    Args:
        attributes: the extra columns; a row that does not have one is empty there.
    """

    def __init__(
        self, folder: Path, *, attributes: Sequence[str] = (), shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder = folder
        self._schema = schema_of(attributes)
        self._empty = dict.fromkeys(attributes, "")
        self._shard_bytes = shard_bytes
        self._rows: list[dict[str, Any]] = []
        self._pending = 0
        self._written = 0
        self._shards = 0
        self._writer: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def write(self, row: TableRow) -> None:
        """Add one row."""
        self._rows.append({**self._empty, **row.to_arrow()})
        self._pending += len(row.image) + len(row.mask or b"")
        if len(self._rows) >= GROUP_ROWS or self._pending >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            path = self._folder / f"slices-{self._shards:05d}.parquet"
            self._shards += 1
            # Pictures are compressed already; of names each is written once in a row group.
            names = [*_CODED, "labels.list.element", *self._empty]
            self._writer = pq.ParquetWriter(
                path, self._schema, compression="none", use_dictionary=names
            )
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._written += self._pending
        self._rows, self._pending = [], 0
        if self._written >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written = None, 0


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


@dataclass(eq=False)
class SliceTable:
    """The open shards of an index, in the order of their names. Safe to use from several threads.

    Attributes:
        attributes: the extra columns that they must have, after the fixed ones.

    Raises (on construction and reading):
        IndexFormatError: a file is not parquet, is cut off, or has other columns.
    """

    paths: Sequence[Path]
    attributes: Sequence[str] = ()
    _files: list[Any] = field(default_factory=list, init=False)
    _groups: list[tuple[int, int]] = field(default_factory=list, init=False)  # (shard, group)
    _starts: list[int] = field(default_factory=list, init=False)  # first row of each group
    _cache: OrderedDict[tuple[int, str], Any] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        schema = schema_of(self.attributes)
        coded = [*_CODED, *self.attributes]
        for shard, path in enumerate(self.paths):
            try:
                footer = pq.read_metadata(path, memory_map=True)
                if not footer.schema.to_arrow_schema().equals(schema, check_metadata=False):
                    raise IndexFormatError(
                        f"{path} has other columns than the slices of this index; expected "
                        f"{', '.join(schema.names)}"
                    )
                file = pq.ParquetFile(path, metadata=footer, memory_map=True, read_dictionary=coded)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _damaged(path, error) from None
            self._files.append(file)
            for group in range(file.num_row_groups):
                self._groups.append((shard, group))
                self._starts.append(self.rows)
                self.rows += file.metadata.row_group(group).num_rows

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        with self._lock:
            for file in self._files:
                file.close()

    def picture(self, row: int, column: str) -> bytes | None:
        """Return the PNG of `column` ("image" or "mask") in `row`, None where there is none."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard, group = self._groups[number]
        with self._lock:
            found = self._cache.get((number, column))
            if found is None:
                try:
                    table = self._files[shard].read_row_group(
                        group, columns=[column], use_threads=False
                    )
                    found = table.column(column).combine_chunks()
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise _damaged(self.paths[shard], error) from None
                self._cache[number, column] = found
                if len(self._cache) > _CACHED_GROUPS:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end((number, column))
        cell = found[row - self._starts[number]].as_py()
        return None if cell is None else cell["bytes"]

    def where(self, row: int) -> str:
        """Return the file and row for messages."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.paths[self._groups[number][0]]}, row_id {row}"

    def columns(self) -> Columns:
        """Read everything but the pictures and check it.

        Raises:
            IndexFormatError: rows out of order, missing values, names that are too long.
        """
        names = [*(name for name in FIXED if name not in ("image", "mask")), *self.attributes]
        tables: list[Any] = []
        for path, file in zip(self.paths, self._files, strict=True):
            try:
                # The path inside the picture is always empty: it tells null masks without bytes.
                table = file.read(columns=[*names, "image.path", "mask.path"], use_threads=False)
                table.validate(full=True)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _damaged(path, error) from None
            _check_values(table, path, sum(map(len, tables)), self.attributes)
            tables.append(table)
        whole = pa.concat_tables(tables).unify_dictionaries()
        where, position = self.paths[0].parent, whole.column("position_mm")
        volume = _coded(whole, "volume_id", where)
        return Columns(
            volume_ids=volume.names,
            volume=volume.codes,
            patient=_coded(whole, "patient_id", where),
            modality=_coded(whole, "modality", where),
            region=_coded(whole, "region", where),
            attributes={name: _coded(whole, name, where) for name in self.attributes},
            slice_index=_joined(whole.column("slice_index"), np.int64),
            position_mm=np.where(_known(position), _joined(position, np.float64), np.nan),
            spacing=np.concatenate([_spacing(c, where) for c in whole.column("spacing").chunks]),
            labels=LabelColumn.join([_labels(c, where) for c in whole.column("labels").chunks]),
            annotated=_known(whole.column("mask")),
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


def _check_values(table: Any, path: Path, first: int, attributes: Sequence[str]) -> None:
    for name in (*_CODED, "row_id", "slice_index", *attributes):
        if table.column(name).null_count:
            raise IndexFormatError(f"{path}: column {name} has empty values")
    if table.column("image").null_count or table.column("labels").null_count:
        raise IndexFormatError(f"{path}: a row has no image or no list of labels")
    ids = _joined(table.column("row_id"), np.int64)
    if not np.array_equal(ids, np.arange(first, first + len(ids))):
        raise IndexFormatError(
            f"{path}: row_id is not {first}, {first + 1}, ... in order, so rows and embeddings "
            "do not belong together; fetch or build the index again"
        )


def _damaged(path: Path, error: Exception) -> IndexFormatError:
    return IndexFormatError(
        f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); it is cut off or "
        "damaged, fetch or build the index again"
    )
